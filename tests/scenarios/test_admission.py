"""Requests that wait in the gateway, met by real processes: who is next, who is refused early; and every wait ends."""

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest

from loadtests.processes import StubProcess, start_stub
from tests.loadtests.raw_client import Seen
from tests.processes import HOLDFAST, ROOT, Gateway, id_of, until
from tests.scenarios.asking import CHAT, ask, chat, error, header, order, plain, request_id

pytestmark = pytest.mark.slow

LONG = order(tokens=300, tokens_per_s=50)  # for six seconds: until the test is done with it
SHORT = chat(order(tokens=3))
ONE = {"per_replica": 1}
WAIT_S = 20.0
AT_ONCE_S = 0.2  # a few milliseconds, on a starved machine
GOLD, BRONZE = "hf-gold", "hf-bronze"
SLOW_CLASS = {"name": "chat", "first_ms": 30_000, "total_ms": 60_000}
FAST_CLASS = {"name": "chat", "first_ms": 20}  # servers are slower, as is soon known


def tiers(*classes: dict[str, Any], asked_ms: int | None = None) -> dict[str, Any]:
    """Two tiers with a key each; gold goes first, and is promised what these classes promise."""
    gold: dict[str, Any] = {"name": "gold", "priority": 0, "classes": classes}
    if asked_ms is not None:
        gold["asked"] = {"ms": asked_ms}
    digests = {name: sha256(secret.encode()).hexdigest() for name, secret in (("gold", GOLD), ("bronze", BRONZE))}
    keys = [{"user": name, "sha256": digest, "tier": name} for name, digest in digests.items()]
    return {"tiers": [gold, {"name": "bronze", "priority": 3}], "keys": keys}


@pytest.fixture
def stub():
    with start_stub() as one:
        yield one


async def waiting(gateway: Gateway, count: int) -> None:
    """Wait until so many requests do."""
    await asyncio.to_thread(until, lambda: gateway.metric("holdfast_waiting") == count)


async def slow(gateway: Gateway) -> None:
    """Let it be seen that first tokens take five times as long as the fast class has."""
    for _ in range(40):
        assert (await ask(gateway, BRONZE, chat(order(tokens=1, ttft_s=0.1)))).done


@asynccontextmanager
async def full(gateway: Gateway, stub: StubProcess, key: str | None = GOLD, said: str = LONG) -> AsyncIterator[None]:
    """A block in which one request runs at a server; it is hung up on at the end."""
    leave = asyncio.Event()
    first = asyncio.create_task(ask(gateway, key, chat(said), until=lambda seen: leave.is_set()))
    await asyncio.to_thread(until, lambda: stub.stats()["open_streams"] == 1)
    try:
        yield
    finally:
        leave.set()
        await first


async def settled(gateway: Gateway, seen: Seen) -> dict[str, Any]:
    return await asyncio.to_thread(gateway.settled, request_id(seen))


async def test_who_waits_is_served_by_tier_and_by_deadline(start_gateway, stub):
    """While one is at the server the others are not; then gold is first, and of gold whoever must be first."""
    gateway = start_gateway([stub.url], admission=ONE, **tiers(SLOW_CLASS, asked_ms=1000))
    served: list[str] = []

    async def queued(name: str, key: str, **headers: str) -> Seen:
        seen = await ask(gateway, key, chat(order(tokens=20, tokens_per_s=100)), **headers)
        served.append(name)
        return seen

    async with full(gateway, stub):
        tasks = []
        for name, key, ms in (("bronze", BRONZE, None), ("late", GOLD, 29_000), ("soon", GOLD, 20_000)):
            headers = {} if ms is None else {"x_slo_ttft_ms": str(ms)}
            tasks.append(asyncio.create_task(queued(name, key, **headers)))
            await waiting(gateway, len(tasks))
        asked = stub.stats()["requests"]
    seen = await asyncio.gather(*tasks)
    facts = [await settled(gateway, one) for one in seen]

    assert asked == 1
    assert served == ["soon", "late", "bronze"]
    assert [(one.status, one.done) for one in seen] == [(200, True)] * 3
    assert [(fact.get("class"), fact.get("promise")) for fact in facts] == [
        (None, None), ("chat", "kept"), ("chat", "kept")
    ]  # fmt: skip
    for fact, one in zip(facts, seen, strict=True):  # what was waited for is told, and is nobody's overhead
        assert float(header(one, "x-holdfast-overhead-ms") or "") < 1000 * fact["waited_s"]
    assert gateway.metric("holdfast_waiting") == 0
    assert gateway.metric("holdfast_turn_wait_seconds_count") == 3
    assert gateway.metric("holdfast_promises_total", verdict="kept") == 2


async def test_who_will_be_late_is_refused_at_once(start_gateway, stub):
    """With how late it would be, and when to come again; no server is asked, and nothing is charged."""
    gateway = start_gateway([stub.url], admission=ONE, **tiers(FAST_CLASS))
    await slow(gateway)
    asked = stub.stats()["requests"]
    took_s = []
    for _ in range(5):
        began_s = time.monotonic()
        seen = await ask(gateway, GOLD, SHORT)
        took_s.append(time.monotonic() - began_s)

    assert (seen.status, error(seen)["code"], header(seen, "x-should-retry")) == (503, "deadline_unreachable", None)
    assert error(seen)["message"].startswith("The first token of this request is expected in ")
    assert "after it is due" in error(seen)["message"]
    assert int(header(seen, "retry-after") or "") >= 1
    assert min(took_s) < AT_ONCE_S
    fact = await settled(gateway, seen)
    assert (fact["ending"], fact["reason"], fact["promise"]) == ("refused", "deadline_unreachable", "refused")
    assert (fact["charged_tokens"], stub.stats()["requests"]) == (0, asked)
    assert gateway.metric("holdfast_promises_total", verdict="refused") == 5
    assert (await ask(gateway, BRONZE, SHORT)).done  # nothing was promised to that one


@pytest.mark.parametrize("asked", ["", "0", "-5", "1.5", "1e3", "soon", "٣", "600001", "1" * 40])
async def test_a_time_to_ask_for_that_is_none_names_its_header(house, asked):
    """Whatever the tier: it says how it is written."""
    seen = await ask(house.gateway, house.key, SHORT, x_slo_ttft_ms=asked)

    assert (seen.status, error(seen)["param"], error(seen)["code"]) == (400, "x-slo-ttft-ms", "invalid_request")
    assert "whole number of milliseconds" in error(seen)["message"]


@pytest.mark.parametrize(
    ("first_ms", "asked_ms", "asks", "status"),
    [
        (30_000, 20_000, "1", 200),  # no shorter than its tier allows
        (30_000, 10, "20", 503),  # as short as that
        (20, None, "60000", 503),  # a tier in which nobody may ask
        (20, 10, "60000", 200),  # as patient as it likes
    ],
)
async def test_a_client_may_ask_for_another_time(start_gateway, stub, first_ms, asked_ms, asks, status):
    """Within what its tier allows; a longer one always."""
    gateway = start_gateway([stub.url], **tiers({"name": "chat", "first_ms": first_ms}, asked_ms=asked_ms))
    await slow(gateway)

    assert (await ask(gateway, GOLD, SHORT, x_slo_ttft_ms=asks)).status == status


async def test_a_client_that_hangs_up_while_it_waits_leaves_no_trace(start_gateway, stub):
    """No server hears of it, it is charged nothing, and its place is free at once."""
    gateway = start_gateway([stub.url], admission=ONE, **tiers(SLOW_CLASS))
    data = json.dumps(SHORT).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nAuthorization: Bearer {GOLD}\r\n\r\n"
    async with full(gateway, stub, BRONZE):
        with socket.create_connection(("127.0.0.1", gateway.port)) as client:
            client.sendall(head.encode() + data)
            await waiting(gateway, 1)
        await waiting(gateway, 0)
        (fact,) = await asyncio.to_thread(until, lambda: gateway.settlements(GOLD))
    after = await ask(gateway, GOLD, SHORT)

    assert (fact["ending"], fact["charged_tokens"], "promise" in fact) == ("client_left", 0, False)
    assert (after.done, stub.stats()["requests"]) == (True, 2)
    assert gateway.paid(GOLD).held == 0


async def test_a_stream_that_waits_is_pinged_and_may_still_be_refused(start_gateway, stub):
    """Its status is sent with the first ping, so the refusal is an error event."""
    gateway = start_gateway([stub.url], admission={**ONE, "wait_s": 1.0}, timeouts={"keepalive_s": 0.2})
    async with full(gateway, stub, None):
        stream, whole = await asyncio.gather(ask(gateway, None, SHORT), ask(gateway, None, plain("hi")))

    assert (stream.status, error(stream)["code"], stream.done) == (200, "overloaded", False)
    assert stream.body.count(b": ping\n") >= 2
    assert "as long as it may" in error(stream)["message"]
    assert (whole.status, error(whole)["code"], header(whole, "retry-after")) == (503, "overloaded", "2")


async def test_a_key_that_is_revoked_ends_its_waits(start_gateway, stub):
    """Within a moment, as it ends what runs."""
    gateway = start_gateway([stub.url], admission=ONE)
    holds, revoked = gateway.key("holds"), gateway.key("revoked")
    async with full(gateway, stub, holds):
        waits = asyncio.create_task(ask(gateway, revoked, SHORT))
        await waiting(gateway, 1)
        await asyncio.to_thread(gateway.cli, "keys", "revoke", id_of(revoked))
        seen = await waits

    assert (seen.status, error(seen)["code"]) == (401, "invalid_api_key")
    assert gateway.metric("holdfast_waiting") == 0
    assert stub.stats()["requests"] == 1


async def test_the_limit_of_a_request_holds_while_it_waits(start_gateway, stub):
    """It is a 504 as it would be at a server."""
    more = tiers()
    limited = {"user": "short", "sha256": sha256(b"hf-short").hexdigest(), "timeouts": {"total_s": 1.0}}
    gateway = start_gateway([stub.url], admission=ONE, tiers=more["tiers"], keys=[*more["keys"], limited])
    async with full(gateway, stub):
        seen = await ask(gateway, "hf-short", SHORT)

    assert (seen.status, error(seen)["code"]) == (504, "timeout")
    assert gateway.metric("holdfast_waiting") == 0
    assert stub.stats()["requests"] == 1


@pytest.mark.parametrize(("drain_s", "status"), [(WAIT_S, 200), (0.5, 503)])
async def test_who_waits_at_the_gateways_end_is_served_or_told(start_gateway, stub, drain_s, status):
    """Those that wait are among those inside: they have until the end of the drain."""
    gateway = start_gateway([stub.url], admission=ONE, timeouts={"drain_s": drain_s})
    running = asyncio.create_task(ask(gateway, None, chat(order(tokens=150, tokens_per_s=50))))
    await asyncio.to_thread(until, lambda: stub.stats()["open_streams"] == 1)
    waits = asyncio.create_task(ask(gateway, None, SHORT))
    await waiting(gateway, 1)

    exited = await asyncio.to_thread(gateway.stop)
    first, second = await running, await waits

    assert (exited, first.done, second.status) == (0, status == 200, status)
    assert (second.done or error(second)["code"]) == (True if status == 200 else "overloaded")
    assert sum(one.held for one in gateway.balances()) == 0


async def test_a_dead_servers_permits_come_back(start_gateway):
    """Its stream goes on at the other one, beyond what has room there; who waits is served, then all room is free."""
    with start_stub() as left, start_stub() as right:
        gateway = start_gateway([left.url, right.url], standby=False, admission=ONE)
        slow = chat(order(tokens=100, tokens_per_s=50))
        running = [asyncio.create_task(ask(gateway, None, slow)) for _ in range(2)]
        await asyncio.to_thread(until, lambda: left.stats()["open_streams"] + right.stats()["open_streams"] == 2)
        waits = [asyncio.create_task(ask(gateway, None, SHORT)) for _ in range(3)]
        await waiting(gateway, 3)
        left.kill()
        seen = await asyncio.gather(*running, *waits)
        began_s = time.monotonic()
        after = [await ask(gateway, None, SHORT) for _ in range(3)]
        took_s = time.monotonic() - began_s

    assert [one.done for one in (*seen, *after)] == [True] * 8
    assert gateway.metric("holdfast_waiting") == 0
    assert took_s < WAIT_S / 4


async def test_where_the_only_server_died_who_waits_is_told(start_gateway, stub):
    """Within a moment, and not after the longest wait; one may have been sent there before the death was known."""
    gateway = start_gateway([stub.url], admission=ONE, timeouts={"keepalive_s": 0})
    running = asyncio.create_task(ask(gateway, None, chat(LONG)))
    await asyncio.to_thread(until, lambda: stub.stats()["open_streams"] == 1)
    waits = [asyncio.create_task(ask(gateway, None, SHORT)) for _ in range(5)]
    await waiting(gateway, 5)
    stub.kill()
    async with asyncio.timeout(WAIT_S / 2):
        seen = await asyncio.gather(running, *waits)

    told = {(one.status, error(one)["code"]) for one in seen[1:]}
    assert told <= {(503, "no_replica"), (502, "upstream_error")}
    assert gateway.metric("holdfast_waiting") == 0


async def test_agents_within_agents_do_not_wait_for_each_other(start_gateway, stub):
    """A parent may keep its only permit while its child, and that one's, have theirs; a second child waits."""
    gateway = start_gateway([stub.url], admission={**ONE, "per_model": 1, "per_agent": 1}, **tiers())
    leave = asyncio.Event()

    def agent(name: str, said: str) -> "asyncio.Task[Seen]":
        def until_left(seen: Seen) -> bool:
            return leave.is_set()

        return asyncio.create_task(ask(gateway, GOLD, chat(said), until=until_left, x_agent_id=name))

    parents = []
    for number, name in enumerate(("planner", "planner/search")):
        parents.append(agent(name, LONG))
        await asyncio.to_thread(until, lambda wanted=number + 1: stub.stats()["open_streams"] == wanted)
    deepest = await ask(gateway, GOLD, SHORT, x_agent_id="planner/search/reader")
    second = asyncio.create_task(ask(gateway, GOLD, SHORT, x_agent_id="planner/other"))
    await waiting(gateway, 1)
    leave.set()
    await asyncio.gather(*parents)

    assert deepest.done
    assert (await second).done


async def test_what_was_kept_is_told(start_gateway, stub):
    """By the command line, as a table and for programs, and by the admin port, which takes no questions."""
    gateway = start_gateway([stub.url], **tiers({**SLOW_CLASS, "output_max": 9}, {"name": "long", "first_ms": 20}))
    await slow(gateway)
    for tokens in (3, 3, 100):
        await ask(gateway, GOLD, chat(order(tokens=tokens), max_tokens=tokens))
    run = [HOLDFAST, "sla", "--config", gateway.config_file]
    table = await asyncio.to_thread(subprocess.run, run, cwd=ROOT, capture_output=True, text=True, check=True)
    as_json = await asyncio.to_thread(subprocess.run, [*run, "--json"], cwd=ROOT, capture_output=True, check=True)
    status, asked = await asyncio.to_thread(gateway.get, "/admin/sla", gateway.admin_url)
    unknown, _ = await asyncio.to_thread(gateway.get, "/admin/sla?limit=1", gateway.admin_url)

    told = json.loads(as_json.stdout)
    assert (status, unknown, json.loads(asked)) == (200, 400, told)
    assert [(one["class"], one["made"], one["kept"], one["broken"]["refused"]) for one in told["classes"]] == [
        ("chat", 2, 2, 0), ("long", 1, 0, 1)
    ]  # fmt: skip
    assert told["worst"]["class"] == "long"
    assert "refused 1" in table.stdout
    assert "0 requests wait for a server now." in table.stdout
