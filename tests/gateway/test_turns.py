"""Whose turn it is, what was promised, and what is left of a request when its turn is over, however that came."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.books.tenants import OPEN, Tenant, tenant
from gateway.fleet.listener import Listener
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Care, Fleet
from gateway.forecasts import STALE_S, Forecasts
from gateway.turns import COUNT_S, OURS, Turn, Turns
from gateway.verdicts import Verdicts
from gateway.waiting import Waiting
from guards.admission import Admission, Bounds
from guards.attainment import Verdict
from guards.breaker import Outcome, Plan, State
from guards.fairness import INPUT
from guards.health import Health
from guards.place import Rank
from guards.prediction import Situation
from guards.refusal import Ending, Reason, Refused
from guards.sla import Objective, ServiceClass, Slope, Tier
from tests.gateway.stream.fakes import call_for
from tests.sim.loop import SimLoop

UP, GONE = Health(up=True, why="answers"), Health(up=False, why="cannot be reached", gone=True)
MUTE = Health(up=False, why="does not answer")
CALLS = 4  # that open a breaker, if half of them failed
OPEN_S = 5.0  # that it is open
WAIT_S = 30.0
PROMPT, LIKELY = 20, 100  # tokens of each request, about
WINDOW = 100  # of the model
KEY = tenant("k1", "alice", "acme", "search", {})


def promising(first_s: float | None = 1.0, between_s: float | None = 0.1, total_s: float | None = 10.0) -> Rank:
    """A tier with one class for all."""
    objective = Objective(first_s and Slope(first_s), between_s, total_s and Slope(total_s))
    return Rank("gold", promises=Tier("gold", (ServiceClass("chat", objective),)))


@dataclass
class Answer:
    """What is being answered, as far as turns look at it."""

    prompt_tokens: int = 0
    prompt_known: bool = False
    completion_tokens: int = 0
    pace: Any = field(default_factory=lambda: SimpleNamespace(first_token_at=None))


async def _nobody(*asked: object) -> Any:
    raise AssertionError("nobody is asked here")


class World:
    """Turns over replicas that are up and have room for so many requests each, in virtual time.

    log: when each request started, and where; refused: for what reason others were not.
    """

    def __init__(
        self, loop: SimLoop, names: str = "a", room: int = 1, ranks: tuple[Rank, ...] = (), predicts: bool = False,
        **how: Any,
    ) -> None:  # fmt: skip
        self.loop, self.log, self.refused = loop, list[tuple[float, str, str]](), dict[str, Reason]()
        self.verdicts, self.waits = list[tuple[str, Verdict]](), list[tuple[str, float]]()
        replicas = [Replica(name, model="tiny", health=UP) for name in names]
        care = Care(1.0, 1.0, breakers=Plan(calls=CALLS, open_s=OPEN_S))
        self.fleet = Fleet(replicas, _nobody, Listener(), care, loop.time)
        forecasts = Forecasts(self.fleet, loop.time) if predicts else None
        self.turns = Turns(
            self.fleet, {one.name: one for one in ranks}, Rank("default"), loop.time,
            forecasts=forecasts, judged=lambda name, verdict: self.verdicts.append((name, verdict)),
            waited=lambda model, seconds: self.waits.append((model, round(seconds, 2))), **how,
        )  # fmt: skip
        bounds = Bounds(server=room, wait_s=WAIT_S)
        self.admission = Admission(bounds, self.turns.route, self.turns.first_token_s)
        self.turns.waiting = self.waiting = Waiting(self.admission, loop.time)

    def taught(self, first_s: float = 0.5) -> None:
        """Enough has been seen of each replica to say when first tokens come."""
        assert self.turns.forecasts is not None
        for one in self.fleet.all():
            quantile = self.turns.forecasts.of(one.name).predictor.first_token
            for _ in range(40):
                quantile.note(quantile.guess(Situation(PROMPT, PROMPT, 0, 0, 0, 0.0)), first_s)

    def turn(self, who: Tenant = OPEN, **said: Any) -> Turn:
        """A request that comes now."""
        call: Any = call_for(**said)
        sink: Any = SimpleNamespace(received_at=self.loop.time())
        quote: Any = SimpleNamespace(terms=SimpleNamespace(prompt_likely=PROMPT, answer_likely=LIKELY, asked_likely=0))
        return self.turns.one(call, who, sink, quote)

    async def serve(self, name: str, seconds: float = 1.0, who: Tenant = OPEN, **said: Any) -> None:
        """One request, which takes so long where it goes."""
        try:
            with self.turn(who, **said) as turn:
                await turn.begin(Answer())
                given = turn.take()
                assert given is not None
                server, entry = given
                turn.sent(server)
                self.log.append((round(self.loop.time(), 2), name, server))
                self.fleet.enter(server, sum(turn.tokens))
                try:
                    await asyncio.sleep(seconds)
                finally:
                    self.fleet.leave(server, sum(turn.tokens))
                    entry.end(Outcome.NEUTRAL)
        except Refused as refused:
            self.refused[name] = refused.reason

    def started(self) -> list[str]:
        """Who started, in order."""
        return [name for _, name, _ in self.log]

    def judge(self, name: str, health: Health) -> None:
        """What probes find of a replica, told as the gateway tells it."""
        self.fleet.named(name).health = health
        told: Any = SimpleNamespace(verdict=lambda *said, **more: None)
        verdicts = Verdicts(lambda *fact: None, told, lambda *legs, **more: None)
        verdicts.waiting = self.waiting
        verdicts.changed(self.fleet.named(name))

    def half_open(self, name: str) -> None:
        """Have a replica's breaker be ready for one probe."""
        for _ in range(CALLS):
            self.fleet.admit(name, "tiny").end(Outcome.FAILED)
        self.loop._now_s += OPEN_S
        assert self.breaker(name).state is State.PROBING

    def breaker(self, name: str) -> Any:
        return self.fleet.named(name).breakers["tiny"]

    def probed(self, name: str) -> bool:
        """Whether somebody has the one probe that a half-open breaker gives."""
        return bool(self.breaker(name)._probing)

    def at_rest(self) -> bool:
        """Whether nothing is left behind."""
        left = [one.load or one.tokens for one in self.fleet.all()]
        permits = self.admission._permits
        left += [server.requests + server.room.tokens for server in permits._servers.values()]
        return not any((*left, len(self.waiting), self.admission.waiting, permits.taken, len(self.turns.running)))


def played(act: Callable[[World], Awaitable[None]], *stage: Any, **more: Any) -> World:
    """What happened in a scene, after which nothing is left behind."""
    loop = SimLoop()
    world = World(loop, *stage, **more)
    try:
        loop.run_until_complete(act(world))
    finally:
        loop.close()
    assert world.at_rest()
    return world


async def all_of(*serving: Awaitable[None]) -> None:
    await asyncio.gather(*serving)


def of(tier: str | None, key: str = "k1") -> Tenant:
    """A key of a tier."""
    return replace(tenant(key, "alice", None, None, {}), tier=tier)


# ---------------------------------------------------------------- whose turn it is


def test_a_tier_of_a_lower_number_goes_first():
    """Whoever came first; within a tier, who came first."""
    ranks = (Rank("gold", 0), Rank("bronze", 3))

    async def scene(world: World) -> None:
        await all_of(
            world.serve("first"), world.serve("cheap", who=of("bronze", "k2")), world.serve("usual"),
            world.serve("dear", who=of("gold", "k3")), world.serve("dear too", who=of("gold", "k3")),
        )  # fmt: skip

    world = played(scene, ranks=ranks)

    assert world.started() == ["first", "dear", "dear too", "usual", "cheap"]
    assert world.waits == [("tiny", 1.0), ("tiny", 2.0), ("tiny", 3.0), ("tiny", 4.0)]


def test_a_tier_that_nobody_configured_is_the_usual_one():
    """As when a key outlives its tier in the configuration."""

    async def scene(world: World) -> None:
        assert world.turn(of("gone")).rank == world.turn(of(None)).rank == Rank("default")

    played(scene)


@pytest.mark.parametrize(
    ("fair_by", "whose"),
    [("key", "key:k1"), ("user", "user:acme/alice"), ("team", "team:acme/search"), ("org", "org:acme")],
)
def test_turns_are_shared_between_what_is_configured(fair_by, whose):
    """Also where no limit of that scope is: all keys of an org are one tenant, if orgs are what is asked for."""

    async def scene(world: World) -> None:
        asks = world.turns.ask(world.turn(KEY))
        assert asks.share.tenant.startswith(whose)

    played(scene, fair_by=fair_by)


@pytest.mark.parametrize("fair_by", ["key", "user", "team", "org"])
def test_a_key_without_the_scope_is_by_the_next_narrower_one(fair_by):
    """A key of no org is none of all keys without one."""

    async def scene(world: World) -> None:
        keys = [tenant(key, user, None, None, {}) for key, user in (("k1", "alice"), ("k2", "bob"))]
        one, other = (world.turns.ask(world.turn(key)).share.tenant for key in keys)
        assert one != other
        assert one.startswith("key:k1" if fair_by == "key" else "user:alice")

    played(scene, fair_by=fair_by)


def test_an_org_whose_keys_are_of_two_tiers_has_the_permits_of_each():
    """One number for both would change with every look, and looking would never end."""
    ranks = (Rank("few", permits=1), Rank("more", permits=2))
    keys = [tenant(key, "u", "acme", None, {}) for key in ("k1", "k2")]
    few, more = (replace(key, tier=tier) for key, tier in zip(keys, ("few", "more"), strict=True))

    async def scene(world: World) -> None:
        await all_of(*(world.serve(f"{who.tier} {n}", who=who) for n in range(3) for who in (few, more)))

    world = played(scene, room=10, ranks=ranks, fair_by="org")

    assert [(at, name) for at, name, _ in world.log] == [
        (0.0, "few 0"), (0.0, "more 0"), (0.0, "more 1"), (1.0, "few 1"), (1.0, "more 2"), (2.0, "few 2"),
    ]  # fmt: skip


def test_servers_that_schedule_are_told_the_tiers_priority():
    """Instead of what the client says; others are told what the client says."""
    ranks = (Rank("gold", 0),)

    async def scene(world: World) -> None:
        said = [world.turn(who, priority=-9).call.body["priority"] for who in (of("gold"), of(None))]
        assert said == [0, 1]

    async def unscheduled(world: World) -> None:
        assert "priority" not in world.turn(of("gold")).call.body

    played(scene, ranks=ranks, scheduled=frozenset({"tiny"}))
    played(unscheduled, ranks=ranks)


@pytest.mark.parametrize(
    ("known", "sent", "owed"),
    [
        ([(0, False)], True, INPUT * PROMPT),
        ([(7, True)], True, INPUT * 7),
        ([(7, True), (0, False)], True, INPUT * 7),
        ([(0, False)], False, 0),
    ],
)
def test_who_hangs_up_before_the_first_token_owes_the_prompt_that_a_server_computes(known, sent, owed):
    """The true one if it is known, else what it likely is; and nothing if no server was asked."""
    served = []

    async def scene(world: World) -> None:
        answer = Answer()
        with suppress(asyncio.CancelledError), world.turn() as turn:
            await turn.begin(answer)
            if sent:
                turn.sent("a")
            for answer.prompt_tokens, answer.prompt_known in known:
                turn.count()
            tenant = turn._place.tenant
            raise asyncio.CancelledError
        served.append(tenant.served)

    played(scene)

    assert served == [owed]


def test_who_is_cancelled_as_it_is_let_in_owes_nothing():
    """It was charged when it was let in, and no server has heard of it."""

    async def scene(world: World) -> None:
        first = asyncio.ensure_future(world.serve("first", 1.0, who=of(None, "k1")))
        await asyncio.sleep(0)
        gone = asyncio.ensure_future(world.serve("gone", 1.0, who=of(None, "k2")))
        await asyncio.sleep(0)
        (place,) = world.waiting._futures
        before = place.tenant.served
        world.waiting.lost("a")
        assert place.tenant.served == before + INPUT * PROMPT
        gone.cancel()
        await asyncio.gather(first, gone, return_exceptions=True)
        assert place.tenant.served == before

    played(scene)


def test_a_padded_prompt_gives_back_the_room_that_it_does_not_need():
    """As soon as all its prompts are known: of some of them one cannot say what they come to."""
    seen = []

    async def scene(world: World) -> None:
        answer = Answer()
        with world.turn() as turn:
            await turn.begin(answer)
            room = world.admission._permits.server("a").room
            for tokens, known in ((0, False), (3, False), (7, True)):
                answer.prompt_tokens, answer.prompt_known = tokens, known
                turn.count()
                seen.append(room.tokens)

    played(scene)

    assert seen == [PROMPT + LIKELY, PROMPT + LIKELY, 7 + LIKELY]


def test_who_is_foreseen_likely_takes_no_more_than_the_models_window():
    """By its body it would take more, for it is padded."""
    asked_of = []

    async def scene(world: World) -> None:
        world.fleet.named("a").serves = {"tiny": WINDOW}
        asked: Any = SimpleNamespace(foresee=lambda ask: asked_of.append(ask.input_tokens))
        world.turns.waiting = asked
        padded = call_for(messages=[{"role": "user", "content": " " * 40 * WINDOW}])
        world.turns._foresee(padded, OPEN, 0.0, "tiny", LIKELY, LIKELY)

    played(scene)

    assert asked_of == [WINDOW]


# ---------------------------------------------------------------- where they go


def test_requests_that_start_all_at_once_are_spread_over_the_servers():
    """None of them has been sent yet when the next one is placed."""

    async def scene(world: World) -> None:
        holds = [asyncio.ensure_future(world.serve(f"old {n}")) for n in range(8)]
        await asyncio.sleep(0.1)
        waits = [asyncio.ensure_future(world.serve(f"new {n}")) for n in range(4)]
        await asyncio.sleep(0.1)
        world.admission.lost("a")
        world.waiting.lost("b")  # both servers' permits are free in one go
        await all_of(*holds, *waits)

    world = played(scene, "ab", 4)

    new = [server for _, name, server in world.log if name.startswith("new")]
    assert sorted(new) == ["a", "a", "b", "b"]


def test_with_no_server_up_no_more_are_tried_at_once_than_fit():
    """A server that is held for down may merely be slow to answer its probes; all that wait at once would finish it."""

    async def scene(world: World) -> None:
        world.judge("a", MUTE)
        await all_of(*(world.serve(f"{n}") for n in range(4)))

    world = played(scene, "a", 2)

    assert [at for at, _, _ in world.log] == [0.0, 0.0, 1.0, 1.0]


def test_a_server_that_is_gone_gives_its_permits_back():
    """Who waits goes on at once, elsewhere or there; nothing is given back twice when its requests end."""

    async def scene(world: World) -> None:
        serving = [asyncio.ensure_future(world.serve(f"{n}", 5.0)) for n in range(4)]
        await asyncio.sleep(1.0)
        world.judge("a", GONE)
        await asyncio.sleep(0.0)
        assert [server for _, _, server in world.log] == ["a", "b"]  # b is full, and up
        await all_of(*serving)

    world = played(scene, "ab", 1)

    assert [(at, server) for at, _, server in world.log] == [(0.0, "a"), (0.0, "b"), (5.0, "b"), (10.0, "b")]


def test_a_server_that_comes_back_takes_those_that_wait():
    """At once, though nothing else happens."""

    async def scene(world: World) -> None:
        world.judge("b", GONE)
        serving = [asyncio.ensure_future(world.serve(f"{n}", 20.0)) for n in range(2)]
        await asyncio.sleep(3.0)
        world.judge("b", UP)
        await all_of(*serving)

    world = played(scene, "ab", 1)

    assert [(at, server) for at, _, server in world.log] == [(0.0, "a"), (3.0, "b")]


def test_a_breaker_that_has_been_open_for_long_enough_lets_one_that_waits_try_its_server():
    """Nobody says that its time is over, so it is looked at again and again."""

    async def scene(world: World) -> None:
        counting = asyncio.ensure_future(world.turns.run())
        for _ in range(CALLS):
            world.fleet.admit("b", "tiny").end(Outcome.FAILED)
        await all_of(world.serve("long", 20.0), world.serve("waits", 20.0), world.serve("waits too", 20.0))
        counting.cancel()

    world = played(scene, "ab", 1)

    assert world.log[0] == (0.0, "long", "a")
    at_s, name, server = world.log[1]
    assert (name, server) == ("waits", "b")
    assert OPEN_S <= at_s <= OPEN_S + 2 * COUNT_S


# ---------------------------------------------------------------- probes


def test_one_of_many_that_start_at_once_is_the_probe():
    """The others wait for the server that is well."""

    async def scene(world: World) -> None:
        holds = [asyncio.ensure_future(world.serve("old", 1.0, who=of(None, f"k{n}"))) for n in range(2)]
        await asyncio.sleep(0)
        waits = [asyncio.ensure_future(world.serve("new", 2.0)) for _ in range(6)]
        await asyncio.sleep(0)
        world.half_open("b")
        for name in "ab":
            world.waiting.lost(name)
        await asyncio.sleep(0.5)
        at_b = [server for _, name, server in world.log if (name, server) == ("new", "b")]
        assert (len(at_b), world.probed("b")) == (1, True)
        await all_of(*holds, *waits)

    world = played(scene, "ab", 1)

    assert not world.probed("b")


@pytest.mark.parametrize("how", ["refused", "cancelled", "cancelled as it is let in", "late"])
def test_the_probe_is_given_back_by_who_does_not_go_there(how):
    """Else a server that is well again would be left alone until the probe's time is over."""
    late = promising(first_s=0.2)  # of a token that is expected in half a second

    async def scene(world: World) -> None:
        world.half_open("a")
        world.taught()
        if how == "late":
            await world.serve("late", who=of("gold"))
            assert world.refused == {"late": Reason.LATE}
        else:
            with suppress(asyncio.CancelledError, Refused), world.turn() as turn:
                await turn.begin(Answer())
                assert world.probed("a")
                raise Refused(Reason.OVERLOADED, "a test") if how == "refused" else asyncio.CancelledError
        assert not world.probed("a")

    async def let_in(world: World) -> None:
        first = asyncio.ensure_future(world.serve("first", 1.0))
        await asyncio.sleep(0)
        gone = asyncio.ensure_future(world.serve("gone", 1.0))
        await asyncio.sleep(0)
        world.half_open("a")
        world.waiting.lost("a")
        assert world.probed("a")
        gone.cancel()
        await asyncio.gather(first, gone, return_exceptions=True)
        assert not world.probed("a")

    played(let_in if how == "cancelled as it is let in" else scene, ranks=(late,), predicts=True)


# ---------------------------------------------------------------- promises


def test_who_would_be_late_where_it_is_near_to_goes_where_it_is_in_time(monkeypatch):
    """Though it would be late by no more than what is no reason to go elsewhere for others."""
    soon_s = {"a": 0.9, "b": 0.6}

    async def scene(world: World) -> None:
        monkeypatch.setattr(world.turns.forecasts, "at", lambda one, tokens, near: soon_s[one.name])
        monkeypatch.setattr(world.turns.forecasts, "first_token_s", lambda name, *of: soon_s[name])
        monkeypatch.setattr(world.turns.forecasts, "may_try", lambda *asked: False)
        for near in range(9):
            with world.turn(of("gold")) as turn:
                turn.call.near = near
                await turn.begin(Answer())
                server, entry = turn.take()
                world.log.append((0.0, str(near), server))
                entry.end(Outcome.NEUTRAL)

    world = played(scene, "ab", 9, (promising(first_s=0.8),), predicts=True)

    assert {world.fleet.pick("tiny", frozenset(), near) for near in range(9)} == {"a", "b"}
    assert [server for _, _, server in world.log] == ["b"] * 9


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_is_not_streamed_is_not_learnt_from(stream):
    """Nobody sees when its prompt was computed, so it also is in nobody's way."""

    async def scene(world: World) -> None:
        with world.turn(of("gold"), stream=stream) as turn:
            await turn.begin(Answer())
            turn.sent("a")
            forecasts = world.turns.forecasts
            assert forecasts is not None
            assert forecasts.of("a").prompts.ahead == (PROMPT if stream else 0)
            assert ("predicted_first_s" in turn.judged(Ending.FINISHED, None)) is stream

    played(scene, ranks=(promising(),), predicts=True)


def test_who_would_be_late_is_refused_at_once_and_counted():
    """Its prompt's first token is expected in half a second; that is the promise broken, and it is said so."""

    async def scene(world: World) -> None:
        world.taught()
        await world.serve("late", who=of("gold"))

    world = played(scene, ranks=(promising(first_s=0.2),), predicts=True)

    assert (world.log, world.refused) == ([], {"late": Reason.LATE})


def test_an_idle_server_that_was_slow_is_tried_by_who_would_be_late_there():
    """And is a new one, when it was fast."""

    async def scene(world: World) -> None:
        forecasts = world.turns.forecasts
        assert forecasts is not None
        world.taught(9.0)
        await world.serve("soon", who=of("gold"))
        await asyncio.sleep(STALE_S + 1)
        with world.turn(of("gold")) as turn:
            await turn.begin(Answer())
            turn.sent("a")
            await asyncio.sleep(0.1)
            turn.first("a")
            assert not forecasts.knows("a", PROMPT)

    world = played(scene, ranks=(promising(first_s=0.2),), predicts=True)

    assert world.refused == {"soon": Reason.LATE}


@pytest.mark.parametrize(("max_tokens", "limit_s"), [(None, None), (501, None), (500, 5.0)])
def test_a_class_ends_only_what_cannot_be_larger_than_it_is_for(max_tokens, limit_s):
    """Whatever is likely of it: half of the answers that are promised as short ones might be ended for being long."""
    short = ServiceClass("short", Objective(None, 1.0), output_max=500, turn_s=5.0)
    rank = Rank("gold", promises=Tier("gold", (short, ServiceClass("long", Objective(None, 9.0)))))

    async def scene(world: World) -> None:
        await asyncio.sleep(3)
        turn = world.turn(of("gold"), max_tokens=max_tokens)
        assert turn.promise is not None
        assert turn.promise.service_class == "short"
        said = None if limit_s is None else (pytest.approx(3 + limit_s, abs=0.01), Ending.TIMEOUT, limit_s)
        assert turn.due == said

    played(scene, ranks=(rank,))


def test_nobody_is_refused_by_what_nobody_knows_yet():
    """Else a gateway whose requests are all promised would never learn when their tokens come."""

    async def scene(world: World) -> None:
        await world.serve("first", who=of("gold"))

    world = played(scene, ranks=(promising(first_s=0.2),), predicts=True)

    assert (world.started(), world.refused) == (["first"], {})


def test_who_would_be_late_is_sent_where_lateness_is_not_refused():
    """The promise is broken then, and counted as that at its end."""

    async def scene(world: World) -> None:
        await world.serve("late", who=of("gold"))

    world = played(scene, ranks=(promising(first_s=0.2),), predicts=True, refuse_late=False)

    assert (world.started(), world.refused) == (["late"], {})


ENDINGS = [
    (Ending.FINISHED, None, Verdict.KEPT),
    (Ending.BUDGET, None, Verdict.KEPT),
    (Ending.BREAKER, None, Verdict.KEPT),
    (Ending.SHORTENED, None, Verdict.KEPT),
    (Ending.BOOKS, None, Verdict.LOST),
    (Ending.CLIENT_LEFT, None, None),
    (Ending.STOPPED, None, Verdict.LOST),
    (Ending.UPSTREAM_LOST, None, Verdict.LOST),
    (Ending.UNCONTINUABLE, None, Verdict.LOST),
    (Ending.TIMEOUT, None, Verdict.LOST),
    (Ending.SESSION, None, None),
    (Ending.SILENT, None, Verdict.LOST),
    (Ending.REVOKED, None, None),
    (Ending.REFUSED, None, None),
    (Ending.FAULT, None, Verdict.LOST),
    *((Ending.REFUSED, Refused(reason, ""), Verdict.REFUSED if reason in OURS else None) for reason in Reason),
    (Ending.REFUSED, Refused(Reason.UPSTREAM, "", status=400), None),
    (Ending.REFUSED, Refused(Reason.UPSTREAM, "", status=502), Verdict.REFUSED),
]


def test_every_end_is_judged():
    """None is left out of the table below."""
    assert {ending for ending, _, _ in ENDINGS} == set(Ending)
    assert {refused.reason for _, refused, _ in ENDINGS if refused is not None} == set(Reason)


@pytest.mark.parametrize(("ending", "refused", "verdict"), ENDINGS)
def test_an_end_is_a_verdict(ending, refused, verdict):
    """What the client, its operator or the request itself brought about says nothing of the promise."""

    async def scene(world: World) -> None:
        with world.turn(of("gold")) as turn:
            answer = Answer(prompt_tokens=5, completion_tokens=10)
            await turn.begin(answer)
            await asyncio.sleep(0.5)
            answer.pace.first_token_at = world.loop.time()
            await asyncio.sleep(0.5)
        facts = turn.judged(ending, refused)
        assert facts == {"class": "chat", **({} if verdict is None else {"promise": verdict})}

    world = played(scene, ranks=(promising(),))

    assert world.verdicts == ([] if verdict is None else [("chat", verdict)])


@pytest.mark.parametrize(
    ("first_s", "rest_s", "tokens", "choices", "verdict"),
    [
        (0.9, 0.8, 10, 1, Verdict.KEPT),
        (1.1, 0.8, 10, 1, Verdict.LATE_FIRST),
        (0.9, 1.1, 10, 1, Verdict.SLOW),
        (0.9, 1.1, 20, 2, Verdict.SLOW),  # of two answers, each came as slowly as that one
        (0.9, 9.2, 200, 1, Verdict.LATE_LAST),
    ],
)
def test_a_whole_answer_is_judged_by_its_times(first_s, rest_s, tokens, choices, verdict):
    """Promised are a second until the first token, a tenth between two of one answer, and ten for all."""

    async def scene(world: World) -> None:
        with world.turn(of("gold"), n=choices) as turn:
            answer = Answer(prompt_tokens=5, completion_tokens=tokens)
            await turn.begin(answer)
            await asyncio.sleep(first_s)
            answer.pace.first_token_at = world.loop.time()
            await asyncio.sleep(rest_s)
        assert turn.judged(Ending.FINISHED, None)["promise"] is verdict

    played(scene, ranks=(promising(),))


def test_a_plain_answer_is_promised_its_end_alone():
    """Nobody sees when its first token comes; and where nothing is promised, nothing counts as kept."""

    async def scene(world: World) -> None:
        promise = world.turn(of("gold"), stream=False).promise
        assert promise is not None
        assert (promise.first_s, promise.between_s, promise.total_s) == (None, None, 10.0)

    async def nothing(world: World) -> None:
        turn = world.turn(of("gold"), stream=False)
        assert (turn.promise, turn.headers, dict(turn.about)) == (None, (), {})

    played(scene, ranks=(promising(),))
    played(nothing, ranks=(promising(total_s=None),))


# ---------------------------------------------------------------- what is left


def test_who_waited_is_known_for_it():
    """In the journal, in seconds; who did not is not."""

    async def scene(world: World) -> None:
        first = asyncio.ensure_future(world.serve("first", 2.0))
        await asyncio.sleep(0)
        with world.turn() as turn:
            await turn.begin(Answer())
        await first
        assert turn.judged(Ending.FINISHED, None)["waited_s"] == pytest.approx(2.0, abs=0.01)

    played(scene)


@contextmanager
def no_collector() -> Iterator[None]:
    """A block after which whatever is in a cycle is in `gc.garbage`."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
    finally:
        gc.set_debug(0)
        gc.enable()


@pytest.mark.parametrize("how", ["runs", "waits", "is refused", "is late", "is late when its turn comes", "hangs up"])
def test_a_request_leaves_nothing_to_the_collector(how):
    """However its wait ended: what is in a cycle stays until a sweep, which stops all streams."""
    rank = promising(first_s=0.2 if how == "is late" else 100.0)

    async def one(world: World) -> None:
        first = asyncio.ensure_future(world.serve("first", 100.0 if how == "is refused" else 1.0, who=of("gold", "k2")))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(world.serve("second", who=of(None if how == "is refused" else "gold")))
        await asyncio.sleep(0.1)
        if how == "hangs up":
            second.cancel()
        if how == "is late when its turn comes":
            world.turns.forecasts = Slow()
        await asyncio.gather(first, second, return_exceptions=True)

    async def scene(world: World) -> None:
        with no_collector():
            await asyncio.ensure_future(one(world))
            await asyncio.sleep(0)

    class Slow:
        """Foresees the worst."""

        def first_token_s(self, *asked: object) -> float:
            return 1e6

        def at(self, *asked: object, **more: object) -> float:
            return 1e6

        def may_try(self, *asked: object) -> bool:
            return False

        def sent(self, *asked: object, **more: object) -> Any:
            raise AssertionError("nobody is sent")

    world = played(scene, ranks=(rank,), predicts=True)
    ours = {Turn, Refused, asyncio.Future}
    left = [type(one).__qualname__ for one in gc.garbage if type(one) in ours or type(one).__module__[:7] == "guards."]
    gc.garbage.clear()

    assert left == []
    if how.startswith("is "):
        assert list(world.refused.values())[-1] is (Reason.OVERLOADED if how == "is refused" else Reason.LATE)


def test_who_wins_a_race_has_the_permit():
    """The server that was silent has room again, and nothing is learnt from what another one did."""

    async def scene(world: World) -> None:
        with world.turn(of("gold")) as turn:
            await turn.begin(Answer(prompt_tokens=5))
            given = turn.take()
            assert given is not None
            given[1].end(Outcome.NEUTRAL)
            turn.sent("a")

            turn.first("b")
            turn.won("b")

            servers = world.admission._permits._servers
            assert (servers["a"].requests, servers["b"].requests) == (0, 1)
            assert world.turns.forecasts.of("a").prompts.ahead == 0
        assert servers["b"].requests == 0

    played(scene, names="ab", ranks=(Rank("gold"),), predicts=True)


@pytest.mark.parametrize(("choices", "moved"), [(1, False), (1, True), (2, False)])
def test_what_is_learnt_between_tokens_is_one_answers_at_one_server(choices, moved):
    """Tokens that another server brought before, or that other choices had, took no time of this one's."""

    async def scene(world: World) -> None:
        with world.turn(of("gold"), n=choices) as turn:
            answer = Answer(prompt_tokens=5)
            await turn.begin(answer)
            if moved:
                turn.sent("b")
                turn.first("b")
                answer.completion_tokens = 100
            turn.sent("a")
            await asyncio.sleep(0.5)
            turn.first("b")  # in a race, which says nothing of a
            turn.first("a")
            await asyncio.sleep(1.0)
            answer.completion_tokens += 11 * choices
        facts = turn.judged(Ending.FINISHED, None)
        assert ("predicted_first_s" in facts) is not moved

    learnt: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guards.prediction.Quantile.note", lambda self, guess, actual_s: learnt.append(actual_s))
        played(scene, "ab", ranks=(promising(100.0, 100.0, 100.0),), predicts=True)

    assert learnt[-2:] == pytest.approx([0.5, 0.1], abs=1e-3)
