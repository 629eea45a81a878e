"""The fleet: what probes find out, who is picked, and what is said when nobody can serve."""

import asyncio
import json
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from gateway.fleet.listener import Listener
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Care, Fleet
from gateway.stream.leg_end import Cause, LegEnd
from guards.breaker import Breaker

GOOD = LegEnd(Cause.DONE, "", 200)
DEAD = LegEnd(Cause.FAILED, "", 503)
REFUSED = LegEnd(Cause.UNREACHED)
SILENT = LegEnd(Cause.SILENT)
NONE: frozenset[str] = frozenset()
CARE = Care(probe_every_s=0.0, probe_s=1.0)


def models(**windows: int | None) -> LegEnd:
    """The answer of /v1/models."""
    cards = [{"id": name, "object": "model", "max_model_len": window} for name, window in windows.items()]
    return LegEnd(Cause.DONE, "", 200, json.dumps({"object": "list", "data": cards}).encode())


def counters(tokens: int) -> LegEnd:
    """The answer of /metrics; 0 where counters are switched off."""
    return LegEnd(Cause.DONE, "", 200, b'vllm:generation_tokens_total{engine="0"} %d\n' % tokens)


class World(Listener):
    """Replicas that answer as told; `asked` and `changes` note what happened.

    health, cards, pages, canaries: what /health, /v1/models, /metrics and a request for one token are answered.
    meanwhile: done while a canary of that replica waits.
    """

    def __init__(self, *replicas: Replica, care: Care = CARE, **cards: LegEnd) -> None:
        self.health: dict[str, LegEnd] = {}
        self.cards = cards
        self.pages: dict[str, LegEnd] = {}
        self.canaries: dict[str, LegEnd] = {}
        self.meanwhile: dict[str, Callable[[], None]] = {}
        self.waits: list[float] = []  # of canaries
        self.now_s = 0.0
        self.broken: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.changes: list[tuple[str, bool | None, str]] = []
        self.held: asyncio.Event | None = None
        self.turns: list[tuple[str, str, str]] = []
        self.compares: list[tuple[str, list[str]]] = []
        self.fleet = Fleet(list(replicas), self.ask, self, care, lambda: self.now_s)

    async def ask(self, name: str, path: str, body: bytes | None, timeout_s: float) -> LegEnd:
        self.asked.append((name, path))
        if self.held is not None:
            await self.held.wait()
        await asyncio.sleep(0)
        if name in self.broken:
            raise RuntimeError("a bug")
        if path == "/v1/completions":
            self.waits.append(timeout_s)
            self.meanwhile.get(name, lambda: None)()
            return self.canaries.get(name, GOOD)
        said = {"/health": self.health.get(name, GOOD), "/metrics": self.pages.get(name, counters(5))}
        return said.get(path) or self.cards.get(name, models(m=100))

    def changed(self, replica: Replica) -> None:
        self.changes.append((replica.name, replica.health.up, replica.health.why))

    def turned(self, replica: Replica, model: str, breaker: Breaker) -> None:
        self.turns.append((replica.name, model, breaker.state))

    def compared(self, replica: Replica) -> None:
        self.compares.append((replica.name, replica.beside.words))


async def test_a_probed_replica_is_up_and_serves_what_it_says():
    """One good probe brings a replica up and discovers its models with their windows."""
    world = World(Replica("a"), a=models(m=100, n=None))

    before = (world.fleet.knows("m"), world.fleet.models)
    await world.fleet.probe("a")

    assert before == (False, [])
    assert (world.fleet.models, world.fleet.window("m"), world.fleet.window("n")) == (["m", "n"], 100, None)
    assert world.changes == [("a", True, "answers")]
    assert world.fleet.not_ready() == []


async def test_models_are_asked_for_again_only_after_a_replica_was_down():
    """A replica that stays up is only asked for its health; one that comes back may serve another model."""
    world = World(Replica("a"))
    await world.fleet.probe("a")
    await world.fleet.probe("a")
    quiet = len(world.asked)

    world.health["a"] = DEAD
    await world.fleet.probe("a")
    world.health["a"], world.cards["a"] = GOOD, models(other=1)
    await world.fleet.probe("a")

    assert quiet == 3
    assert world.fleet.models == ["other"]
    assert [(up, why) for _, up, why in world.changes] == [
        (True, "answers"), (False, "its engine is dead"), (True, "answers"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "why"), [(DEAD, "its engine is dead"), (REFUSED, "cannot be reached"), (SILENT, "does not answer")]
)
async def test_a_replica_that_fails_its_probe_is_named_with_the_reason(answer, why):
    """Each way of not answering has its own words, and readiness repeats them."""
    world = World(Replica("a", model="m"))
    world.health["a"] = answer

    await world.fleet.probe("a")

    assert world.changes == [("a", False, why)]
    assert world.fleet.not_ready() == [f"model m: a {why}"]


@pytest.mark.parametrize(
    ("cards", "why"),
    [
        (models(other=1), "does not serve the model"),
        (LegEnd(Cause.DONE, "", 200, b"oops"), "does not serve the model"),
        (LegEnd(Cause.DONE, "", 200, b'{"data":[{"id":"\xff"}]}'), "does not serve the model"),
        (LegEnd(Cause.REFUSED, "", 401), "refuses the upstream key"),
        (SILENT, "does not answer"),
        (REFUSED, "cannot be reached"),
    ],
    ids=["another model", "nonsense", "broken utf-8", "a wrong key", "silence", "gone"],
)
async def test_a_replica_that_cannot_tell_its_model_is_not_up(cards, why):
    """A healthy server without the configured model is down, by its reason, and probing goes on."""
    world = World(Replica("a", model="m"), a=cards)

    await world.fleet.probe("a")

    assert world.changes == [("a", False, why)]


async def test_one_missed_probe_does_not_take_a_replica_down():
    """A replica that was up is down after three unanswered probes in a row; an answer between starts the count anew."""
    world = World(Replica("a"))
    for answer in (GOOD, SILENT, SILENT, GOOD, SILENT, SILENT):
        world.health["a"] = answer
        await world.fleet.probe("a")
    up = world.changes == [("a", True, "answers")]

    await world.fleet.probe("a")

    assert up
    assert world.changes[-1] == ("a", False, "does not answer")


async def test_the_next_replica_is_the_least_loaded_that_is_up():
    """Legs are counted per replica; a new one goes where the fewest are, and elsewhere than where it failed."""
    world = World(Replica("a", model="m"), Replica("b", model="m"), Replica("s", standby=True, model="m"))
    for name in ("a", "b", "s"):
        await world.fleet.probe(name)

    first = world.fleet.pick("m", NONE)
    world.fleet.enter("a")
    second = world.fleet.pick("m", NONE)
    world.fleet.leave("a")

    assert (first, second, world.fleet.pick("m", NONE)) == ("a", "b", "a")
    assert world.fleet.pick("m", frozenset("ab")) == "s"
    assert world.fleet.pick("unknown", NONE) is None


async def test_a_configured_model_is_known_before_any_probe():
    """A replica with a configured model serves it from the start, and nothing else."""
    fleet = World(Replica("a", model="m"), Replica("b")).fleet

    assert (fleet.knows("m"), fleet.knows("n"), fleet.models) == (True, False, ["m"])
    assert fleet.pick("m", NONE) == "a"


def test_a_fleet_without_replicas_says_so():
    """Readiness names what is missing, also when nothing is configured or nothing was probed."""
    assert World().fleet.not_ready() == ["no replica is configured"]
    assert World(Replica("a")).fleet.not_ready() == ["a not probed yet"]


async def test_a_suspicion_is_looked_into_once_at_a_time():
    """Many streams lost at one server make one probe, at once; a later loss makes another."""
    world = World(Replica("a", model="m"))
    world.held = asyncio.Event()
    for _ in range(5):
        world.fleet.suspect("a")
    await asyncio.sleep(0)
    asked = len(world.asked)
    world.held.set()
    await asyncio.gather(*world.fleet._busy.values())
    world.fleet.suspect("a")
    await asyncio.gather(*world.fleet._busy.values())

    assert asked == 1
    assert world.asked == [("a", "/health"), ("a", "/v1/models"), ("a", "/health")]


async def test_what_two_servers_failed_goes_to_the_one_that_is_there():
    """One that has just died is up until somebody has looked; it is asked again when no other one is left."""
    world = World(Replica("a", model="m"), Replica("b", model="m"))
    for name in ("a", "b"):
        await world.fleet.probe(name)
    both, a, b = frozenset("ab"), frozenset("a"), frozenset("b")

    assert [world.fleet.pick("m", both, None, missing) for missing in (a, b, both)] == ["b", "a", "a"]
    assert world.fleet.pick("m", a, None, a) == "b"
    world.health["b"] = REFUSED
    await world.fleet.probe("b")
    assert world.fleet.pick("m", both, None, a) == "a"


async def test_every_replica_is_probed_again_and_again():
    """Probing goes on for as long as the gateway lives, also past a server that talks nonsense."""
    world = World(Replica("a"), Replica("b"), a=LegEnd(Cause.DONE, "", 200, b'{"data":"\xff"}'))
    task = asyncio.create_task(world.fleet.run())
    for _ in range(100):
        await asyncio.sleep(0)
    task.cancel()

    assert min(world.asked.count((name, "/health")) for name in "ab") > 3
    assert world.fleet.models == ["m"]


def answered(status: int) -> LegEnd:
    """An answer of this status to a probe."""
    return LegEnd(Cause.REFUSED if status < 500 else Cause.FAILED, "", status)


@pytest.mark.parametrize(
    ("status", "why", "gone"),
    [(401, "refuses the upstream key", False), (403, "refuses the upstream key", False),
     (500, "its engine is dead", True), (503, "its engine is dead", True)],
)  # fmt: skip
async def test_a_clear_answer_takes_a_replica_down_at_once(status, why, gone):
    """A wrong key and a dead engine need no strikes; only of a dead one the streams are known to be lost."""
    world = World(Replica("a"))
    await world.fleet.probe("a")
    world.health["a"] = answered(status)

    await world.fleet.probe("a")

    assert world.changes[-1] == ("a", False, why)
    assert world.fleet.all()[0].health.gone is gone


@pytest.mark.parametrize("status", [404, 429, 502, 504])
async def test_a_proxys_answer_is_a_strike_and_ends_no_stream(status):
    """What vLLM's /health never says takes a replica down after three probes, and its streams are left alone."""
    world = World(Replica("a"))
    await world.fleet.probe("a")
    world.health["a"] = answered(status)

    ups = []
    for _ in range(3):
        await world.fleet.probe("a")
        ups.append(world.fleet.all()[0].health.up)

    assert ups == [True, True, False]
    assert world.changes[-1] == ("a", False, "does not answer as vLLM does")
    assert not world.fleet.all()[0].health.gone


async def test_a_replica_that_cannot_be_probed_does_not_end_the_others():
    """A probe that raises is logged with its replica; the others, and it too, are probed again."""
    world = World(Replica("a"), Replica("b"))
    world.broken.add("a")
    with capture_logs() as logs:
        task = asyncio.create_task(world.fleet.run())
        for _ in range(100):
            await asyncio.sleep(0)
        running = not task.done()
        task.cancel()

    assert running
    assert min(world.asked.count((name, "/health")) for name in "ab") > 3
    assert {(one["event"], one["replica"]) for one in logs} == {("probe.fault", "a")}
    assert world.fleet.models == ["m"]
