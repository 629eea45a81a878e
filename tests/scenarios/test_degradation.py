"""The ladder: another replica, a shorter answer, a cheaper model, and at last a well-formed error."""

import asyncio
from collections.abc import Iterator

import pytest

from loadtests.processes import StubProcess, start_stub
from tests.processes import TRUSTING, Gateway, until
from tests.scenarios.asking import ask, chat, error, header, order, plain, request_id

SHORT = 40  # tokens of an answer
LONG = 400


@pytest.fixture
def mini() -> Iterator[StubProcess]:
    """A server of a cheaper model."""
    with start_stub(model="mini") as stub:
        yield stub


async def test_a_fleet_that_fails_everything_is_asked_little_more_than_once(start_gateway, house):
    """Where all servers answer 500, a fifth of the requests is asked again; else each would be four times."""
    with start_stub() as one, start_stub() as other:
        retries = {"percent": 20, "per_s": 0}
        gateway = await asyncio.to_thread(start_gateway, [one.url, other.url], retries=retries, health=TRUSTING)
        for stub in (one, other):
            stub.arm("status", times=100_000, status=500)
        requests = 100

        seen = [await ask(gateway, None, (chat if number % 2 else plain)()) for number in range(requests)]

        legs = gateway.metric("holdfast_legs_total", end="failed")
        assert requests < legs <= 1.2 * requests
        assert gateway.metric("holdfast_degraded_total", step="another_replica") == legs - requests
    assert {(one.status, error(one)["code"]) for one in seen} == {(502, "upstream_error")}
    assert "500" in error(seen[-1])["message"]
    assert "asked again" in error(seen[-1])["message"]
    assert header(seen[-1], "retry-after") == "1"


async def test_a_quiet_fleet_asks_again_and_says_so(start_gateway, house):
    """One server's error is another one's answer; the head and the journal tell."""
    with start_stub() as failing:
        failing.arm("status", times=2, status=500)
        gateway = await asyncio.to_thread(start_gateway, [failing.url, house.standby.url], health=TRUSTING)

        seen = [await ask(gateway, None, make(order(tokens=5))) for make in (chat, plain)]

    assert [one.status for one in seen] == [200, 200]
    assert [header(one, "x-holdfast-retries") for one in seen] == ["1", "1"]
    assert [gateway.settled(request_id(one))["retries"] for one in seen] == [1, 1]


async def test_a_server_that_died_is_no_question_of_the_budget(start_gateway, house):
    """Where no retry is left, a request whose server is not there goes to another one all the same."""
    with start_stub() as dying:
        gateway = await asyncio.to_thread(
            start_gateway, [dying.url, house.standby.url], retries={"percent": 0, "per_s": 0},
            timeouts={"probe_every_s": 60},
        )  # fmt: skip
        dying.kill()

        seen = await ask(gateway, None, chat(order(tokens=5)))

    assert (seen.status, seen.done) == (200, True)


async def busy(start_gateway, house, mini, *steps: str, waiting: int = 1) -> tuple[Gateway, list[asyncio.Task]]:
    """A gateway whose only server of the first model answers one request, while as many wait as may."""
    gateway = await asyncio.to_thread(
        start_gateway, [house.active.url], cheaper=("mini", mini.url), degrade={"steps": steps, "answer_tokens": SHORT},
        admission={"per_replica": 1, "waiting": waiting},
    )  # fmt: skip
    slow = chat(order(tokens=LONG, tokens_per_s=100))
    asked = [asyncio.create_task(ask(gateway, None, slow)) for _ in range(1 + waiting)]
    await asyncio.to_thread(until, lambda: gateway.metric("holdfast_waiting") == waiting)
    return gateway, asked


async def left(asked: list[asyncio.Task]) -> None:
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_a_cheaper_model_answers_while_servers_are_too_busy(start_gateway, house, mini):
    """Head, answer, journal and metric say which, and why; whoever is let in is not touched."""
    gateway, asked = await busy(start_gateway, house, mini, "shorter", "cheaper")

    seen = await ask(gateway, None, chat(order(tokens=LONG)))

    assert header(seen, "x-holdfast-degraded") == "model=mini"
    assert seen.events[0]["model"] == "mini"
    assert (len(seen.ids), seen.finish) == (LONG, "stop")
    fact = gateway.settled(request_id(seen))
    assert (fact["degraded"], fact["degraded_by"]) == (["cheaper"], "overloaded")
    assert (fact["asked_model"], fact["model"]) == ("stub", "mini")
    assert gateway.metric("holdfast_degraded_total", model="stub", step="cheaper") == 1
    await left(asked)
    assert header(await ask(gateway, None, chat(order(tokens=5))), "x-holdfast-degraded") is None


@pytest.mark.parametrize("steps", [(), ("shorter",)])
async def test_where_nothing_helps_the_refusal_is_well_formed(start_gateway, house, mini, steps):
    """And nobody's answer is another one than was asked for, unless the operator says so."""
    gateway, asked = await busy(start_gateway, house, mini, *steps)

    seen = await ask(gateway, None, chat(order(tokens=LONG)))

    assert (seen.status, error(seen)["code"]) == (503, "overloaded")
    assert header(seen, "retry-after") is not None
    await left(asked)
