"""What servers load ahead: how much at once, what they are asked for, and who is never asked."""

import asyncio
import json
from typing import Any

import pytest

from gateway.fleet.gauges import Gauges
from gateway.fleet.listener import Listener
from gateway.fleet.replicas import Care, Fleet
from gateway.stream.leg_end import Cause, LegEnd
from gateway.warming import Outcome, Warmer
from guards.warmth import Bounds, Policy
from tests.gateway.stream.fakes import call_for
from tests.gateway.test_homes import DOWN, nobody, replica

BOUNDS = Bounds()
DONE = {"usage": {"prompt_tokens": 40, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 32}}}


class Servers:
    """Answers when it is told to; `asked` notes what was asked."""

    def __init__(self, bounds: Bounds = BOUNDS, *, answer: Any = DONE, status: int = 200) -> None:
        self.fleet = Fleet([replica("a"), replica("b")], nobody, Listener(), Care(60.0, 1.0), lambda: 0.0)
        self.fleet.named("a").serves = {"tiny": 100}
        self.asked, self.told = list[tuple[str, str, Any]](), list[tuple[str, str, int]]()
        self.gate = asyncio.Event()
        self._end = LegEnd(Cause.DONE, "", status, json.dumps(answer).encode())
        upstream: Any = self
        targets: Any = {"a": "a", "b": "b"}
        self.warmer = Warmer(self.fleet, upstream, targets, self, bounds)

    async def fetch(self, target: str, path: str, body: bytes, timeout_s: float) -> LegEnd:
        self.asked.append((target, path, json.loads(body)))
        await self.gate.wait()
        return self._end

    def warmed(self, replica: str, outcome: str, model: str, tokens: int) -> None:
        self.told.append((replica, outcome, tokens))


async def test_one_token_is_asked_for_behind_all_ids_with_the_tenants_salt():
    """Nothing else of the request: no session, no sampling, and after all others where servers go by priority."""
    servers = Servers()
    servers.gate.set()
    call = call_for(seed=3, priority=0, cache_salt="a client's")
    call.body |= {"cache_salt": "salty", "priority": 1}

    warmed = await servers.warmer.warm("a", call, range(40))

    assert servers.asked == [("a", "/v1/completions", {
        "model": "tiny", "prompt": list(range(40)), "max_tokens": 1, "temperature": 0, "cache_salt": "salty",
        "priority": 3,
    })]  # fmt: skip
    assert (warmed.outcome, warmed.tokens, warmed.cached) == (Outcome.LOADED, 40, 32)
    assert servers.told == [("a", "loaded", 40)]


async def test_a_prompt_leaves_room_for_the_one_token():
    """Of a model's window."""
    servers = Servers()
    servers.gate.set()
    await servers.warmer.warm("a", call_for(), range(150))

    assert len(servers.asked[0][2]["prompt"]) == 99


@pytest.mark.parametrize("spoil", ["down", "drained", "waiting", "full", "silent"])
async def test_one_that_is_not_well_is_not_asked(spoil):
    """It is down, drained, has more requests waiting than are loaded, a full cache, or streams that are silent."""
    servers = Servers()
    a = servers.fleet.named("a")
    if spoil == "down":
        a.health = DOWN
    elif spoil == "drained":
        a.leaving = True
    elif spoil == "silent":
        a.pulse.silent = 1
    else:
        a.gauges = Gauges(9.0 if spoil == "waiting" else 0.0, 0.99 if spoil == "full" else 0.1, 0.0, 0.0)
    servers.gate.set()

    warmed = await servers.warmer.warm("a", call_for(), range(40))

    assert (warmed.outcome, servers.asked) == (Outcome.BUSY, [])


async def test_one_where_others_wait_for_pages_is_asked():
    """Twice as many as are loaded there at once: so vLLM counts those that we sent."""
    servers = Servers()
    servers.fleet.named("a").gauges = Gauges(8.0, 0.9, 0.0, 0.0)
    servers.gate.set()

    assert (await servers.warmer.warm("a", call_for(), range(40))).outcome is Outcome.LOADED


async def test_no_more_are_asked_at_once_than_is_said_in_all_and_of_one():
    """Those beyond wait, or are not asked where nobody waits for them."""
    servers = Servers(Bounds(at_once=3, per_replica=2, within_s=5.0))
    warm = servers.warmer.warm
    tasks = [asyncio.create_task(warm(name, call_for(), [1, 2])) for name in "aaabbb"]
    for _ in range(10):
        await asyncio.sleep(0)
    first = [name for name, _, _ in servers.asked]
    now_or_never = await warm("a", call_for(), [1, 2], wait=False)
    servers.gate.set()
    done = await asyncio.gather(*tasks)

    assert (len(first), first.count("a")) == (3, 2)
    assert now_or_never.outcome is Outcome.FULL
    assert [one.outcome for one in done] == [Outcome.LOADED] * 6
    assert len(servers.asked) == 6


async def test_its_time_is_bounded_its_wait_included():
    """Who was to have it loaded goes on."""
    servers = Servers(Bounds(at_once=1, per_replica=1, within_s=0.02))
    done = await asyncio.gather(*(servers.warmer.warm("a", call_for(), [1, 2]) for _ in range(3)))

    assert [one.outcome for one in done] == [Outcome.LATE] * 3
    assert len(servers.asked) == 1


@pytest.mark.parametrize(("status", "answer", "outcome"), [
    (400, {"error": {}}, Outcome.REFUSED), (200, {"usage": {"prompt_tokens_details": None}}, Outcome.LOADED),
    (200, ["odd"], Outcome.LOADED),
])  # fmt: skip
async def test_what_is_not_told_was_not_cached(status, answer, outcome):
    """Nor where the server's words make no sense."""
    servers = Servers(answer=answer, status=status)
    servers.gate.set()
    warmed = await servers.warmer.warm("a", call_for(), range(40))

    assert (warmed.outcome, warmed.cached) == (outcome, 0)


@pytest.mark.parametrize(("tokens", "loaded", "since_s", "due"), [
    (99, 0, 9.0, False), (100, 0, 9.0, True), (100, 1, 9.0, False), (300, 100, 1.9, False), (300, 100, 2.0, True),
])  # fmt: skip
def test_a_long_stream_is_loaded_again_after_so_many_tokens_and_seconds(tokens, loaded, since_s, due):
    """Neither sooner than the one nor than the other."""
    assert Policy(100, 2.0).due(tokens, loaded, since_s) is due
