"""Planned moves, as the flow sees to them: who goes, who stays, and what it is not."""

from array import array
from typing import Any, cast

import pytest

from gateway.fleet.inspector import Inspector
from gateway.fleet.replica import Replica
from gateway.moves import MOVE_S_MAX, SESSIONS_S, Drain, Moves
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.pace import Pace
from gateway.stream.part import Part
from gateway.stream.seams import Ask
from guards.kinship import Traits
from guards.refusal import Ending
from tests.gateway.stage import Leg, Stage, continuing
from tests.gateway.stream.fakes import BROKEN, PROMPT, Engine, call_for, ids_of, terms_for, text_of
from tests.gateway.test_homes import Town, replica

ANSWER = ids_of("first ü 🦀, and on")
OTHER = ids_of("second, somewhat longer ö")


class Removal:
    """A stage whose replicas can be drained; `told` notes what is heard of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
        monkeypatch.setattr("gateway.moves.LOOK_S", 0.0)
        self.stage, self.told, self.suspects = stage, list[str](), list[str]()
        monkeypatch.setattr(stage.fleet, "suspect", self.suspects.append)
        upstream: Any = self
        inspector = Inspector(stage.fleet.all(), stage._ask, self, lambda: stage.now_s, 0.0)
        self.moves = Moves(stage.fleet, inspector, upstream, self, lambda: stage.now_s)

    def streams(self, name: str) -> list[Leg]:
        return [leg for leg in self.stage.legs if leg.replica == name and leg.open]

    def plain(self, name: str) -> list[Leg]:
        return []

    def leaving(self, replica: Replica) -> None:
        self.told.append(f"{replica.name} leaving" if replica.leaving else f"{replica.name} back")

    def emptied(self, replica: Replica, moved: int, took_s: float) -> None:
        self.told.append(f"{replica.name} empty")

    def moved(self, why: str = "drain") -> None:
        self.told.append("moved")

    def drained(self, replica: Replica, why: str) -> None:
        self.told.append(why)

    async def drain(self, name: str) -> dict[str, Any]:
        self.moves.drain(name)
        await self.stage.turn()
        return self.moves.told(name)

    async def end(self) -> None:
        self.moves.close()
        await self.stage.end()


class Stream:
    """A stream that has a token, and gets the next one when it is told so."""

    def __init__(self) -> None:
        self.call, self.ending, self.open, self.completion_tokens = call_for(), None, True, 1
        self.pace = Pace(lambda: 0.0, lambda gaps: None)

    def so_far(self) -> list["array[int]"]:
        return []

    def events(self, part: Part, raws: list[bytes]) -> None:
        raise AssertionError("nothing comes here")

    async def stays(self, known: object) -> None:
        return None


class Legged:
    """A leg of such a stream."""

    replica, open = "a", True

    def __init__(self, stream: Stream) -> None:
        self.receiver = Part(stream, Ask("", b"", (0,)))

    @property
    def over(self) -> bool:
        return not self.open

    def end(self, end: LegEnd) -> None:
        self.open = False


async def test_no_more_are_on_their_way_at_a_time_than_are_wanted(monkeypatch):
    """The next one goes when one has arrived, which is when it has brought a token there, or has ended."""
    removal = Removal(monkeypatch, stage := Stage(call_for(), Engine([ANSWER])))
    await stage.opened(0)
    stage.legs[0].finish()
    streams = [Stream() for _ in range(5)]
    stage.legs += [Legged(one) for one in streams]  # type: ignore[arg-type]

    def gone() -> int:
        return sum(leg.over for leg in stage.legs[1:])

    removal.moves.drain("a", 2)
    await stage.turn()
    counts = [gone()]
    streams[1].completion_tokens += 1
    await stage.turn()
    counts.append(gone())
    streams[0].open, streams[0].ending = False, Ending.UPSTREAM_LOST
    await stage.turn()
    counts.append(gone())
    removal.moves.drain("a", 3)
    await stage.turn()
    counts.append(gone())
    told = removal.moves.told("a")
    await removal.end()

    assert counts == [2, 3, 4, 5]
    assert (told["moved"], told["moving"]) == (1, 3)  # what has ended badly was not moved


@pytest.mark.parametrize("cut", range(len(ANSWER)))
async def test_a_stream_that_is_moved_goes_on_exactly_and_nobody_has_failed(monkeypatch, cut):
    """Whatever was delivered by then: no breaker counts it, no look is taken at its server, no leg was lost."""
    removal = Removal(monkeypatch, stage := Stage(call_for(return_token_ids=True), Engine([ANSWER])))
    first = await stage.opened(0)
    first.bring(cut)

    told = await removal.drain("a")
    second = await stage.opened(1)
    second.finish()
    await stage.turn()
    after = removal.moves.told("a")
    await removal.end()

    assert (first.cause, second.replica) == (Cause.MOVED, "b")
    assert (told["moving"], told["moved"], told["empty"]) == (1, 0, False)  # it has not arrived yet
    assert (after["moving"], after["moved"], after["left"], after["empty"]) == (0, 1, {}, True)
    assert (stage.seen.ids[0], stage.seen.text[0], stage.seen.done) == (ANSWER, text_of(ANSWER), True)
    assert stage.lease.counted == len(PROMPT) + len(ANSWER)
    assert stage.fleet.named("a").breakers["tiny"].calls == (0, 0)
    assert removal.suspects == []
    assert removal.told == ["a leaving", "moved", "a empty"]


async def test_a_move_uses_up_none_of_the_tries_that_are_for_losses(monkeypatch):
    """Of two tries, one is left after it: the server that it was moved to may die."""
    call = call_for(return_token_ids=True)
    terms = terms_for(call, legs_max=2)
    removal = Removal(monkeypatch, stage := Stage(call, Engine([ANSWER]), replicas="abc", terms=terms))
    (await stage.opened(0)).bring(4)
    await removal.drain("a")
    second = await stage.opened(1)
    second.bring(3)
    second.end(BROKEN)
    (await stage.opened(2)).finish()
    await removal.end()

    assert stage.relay.ending is Ending.FINISHED
    assert stage.seen.ids[0] == ANSWER
    assert removal.suspects == ["b"]


async def test_legs_of_one_stream_move_together_and_give_back_one_try(monkeypatch):
    """After a failover each choice has a leg of its own. Of three tries two are used then, and two after the move."""
    call = call_for(n=2, return_token_ids=True)
    removal = Removal(monkeypatch, stage := Stage(call, Engine([ANSWER, OTHER]), replicas="abc"))
    first = await stage.opened(0)
    first.bring(8)
    first.end(BROKEN)
    for number in (1, 2):
        (await stage.opened(number)).bring(2)
    moved_from = stage.legs[1].replica
    await removal.drain(moved_from)
    legs = [await stage.opened(3), await stage.opened(4)]
    for leg in legs:
        leg.bring(2)
    await stage.turn()
    told, left = removal.moves.told(moved_from), stage.relay._legs_left
    for leg in legs:
        leg.finish()
    await removal.end()

    assert [leg.cause for leg in stage.legs[1:3]] == [Cause.MOVED] * 2
    assert (told["moved"], left) == (1, 1)
    assert stage.seen.ids == {0: ANSWER, 1: OTHER}


@pytest.mark.parametrize(
    ("said", "terms", "why"), [({"seed": 7}, {}, "seed"), ({}, {"decoder": None}, "cannot be made")]
)
async def test_what_could_not_go_on_exactly_stays_to_its_end(monkeypatch, said, terms, why):
    """It is not touched, and why it stays is told."""
    call = call_for(return_token_ids=True, **said)
    removal = Removal(monkeypatch, stage := Stage(call, Engine([ANSWER]), terms=terms_for(call, **terms)))
    first = await stage.opened(0)
    first.bring(4)

    told = await removal.drain("a")
    first.finish()
    await stage.turn()
    after = removal.moves.told("a")
    await removal.end()

    assert [why in said for said in told["left"]] == [True]
    assert (sum(told["left"].values()), told["running"], told["empty"]) == (1, 1, False)
    assert (after["moved"], after["empty"], first.cause) == (0, True, Cause.DONE)
    assert len(stage.legs) == 1


async def test_a_stream_that_was_to_stay_goes_once_another_server_can_continue_it(monkeypatch):
    """As one that has only just come up says a little later; and it is not counted as left any more."""
    call = call_for(return_token_ids=True, tools=[{"type": "function"}])
    removal = Removal(monkeypatch, stage := Stage(call, Engine([ANSWER])))
    stage.fleet.named("b").pages = continuing(continues=None, continues_not="it was not tried yet: ask again")
    first = await stage.opened(0)
    first.bring(4)
    before = await removal.drain("a")
    stage.fleet.named("b").pages = continuing()
    (await stage.opened(1)).finish()
    await stage.turn()
    after = removal.moves.told("a")
    await removal.end()

    assert (sum(before["left"].values()), before["moved"]) == (1, 0)
    assert (after["left"], after["moved"]) == ({}, 1)
    assert stage.seen.ids[0] == ANSWER


async def test_a_leg_that_only_races_there_is_given_up(monkeypatch):
    """Its stream is at another server, and stays there."""
    removal = Removal(monkeypatch, stage := Stage(call_for(return_token_ids=True), Engine([ANSWER])))
    first = await stage.opened(0)
    first.bring(4)
    await stage.silent(first)
    second = await stage.opened(1)

    told = await removal.drain("b")
    cause = second.cause
    first.finish()
    await removal.end()

    assert (cause, first.cause) == (Cause.CLOSED, Cause.DONE)
    assert (told["moving"], told["left"]) == (0, {})
    assert stage.seen.ids[0] == ANSWER


async def test_a_move_that_does_not_arrive_makes_room_for_the_next_one(monkeypatch):
    """A client that does not read must not be what all others wait for."""
    removal = Removal(monkeypatch, stage := Stage(call_for(return_token_ids=True), Engine([ANSWER])))
    (await stage.opened(0)).bring(4)
    await removal.drain("a")
    second = await stage.opened(1)

    stage.now_s += MOVE_S_MAX - 0.1
    await stage.turn()
    before = removal.moves.told("a")["moving"]
    stage.now_s += 0.2
    await stage.turn()
    after = removal.moves.told("a")["moving"]
    second.finish()
    await removal.end()

    assert (before, after) == (1, 0)


async def test_nothing_is_moved_where_nobody_else_is(monkeypatch):
    """That is told by the model's name; once another one is there, it goes on."""
    removal = Removal(monkeypatch, stage := Stage(call_for(return_token_ids=True), Engine([ANSWER]), replicas="ab"))
    first = await stage.opened(0)
    first.bring(4)
    stage.fleet.named("b").leaving = True
    told = await removal.drain("a")
    still = first.open
    stage.fleet.named("b").leaving = False
    (await stage.opened(1)).finish()
    await stage.turn()
    after = removal.moves.told("a")
    await removal.end()

    assert (still, told["alone"], told["moving"]) == (True, ["tiny"], 0)
    assert (after["alone"], after["moved"]) == ([], 1)


async def test_who_could_take_streams_is_asked_once_in_a_look(monkeypatch):
    """Not for each of them: where all servers are drained there may be thousands, and they are looked at for good."""
    removal = Removal(monkeypatch, Stage(call_for(), Engine([ANSWER])))
    legs: list[Any] = [Legged(Stream()) for _ in range(5)]
    monkeypatch.setattr(removal, "streams", lambda name: legs)
    asked = []

    def heirs(replica: Replica, model: str, bound: frozenset[frozenset[str]]) -> list[Any]:
        asked.append(model)
        return []

    monkeypatch.setattr(removal.moves, "_heirs", heirs)
    drain = Drain(removal.stage.fleet.named("a"), 4, 0.0)

    await removal.moves._step(drain)
    (await removal.stage.opened(0)).finish()
    await removal.end()

    assert asked == ["tiny"]
    assert drain.alone == {"tiny"}


async def test_sessions_leave_so_many_at_a_time(monkeypatch):
    """All of them in the end; but each is a fact of the journal, and tens of thousands at once would be too many."""
    monkeypatch.setattr("gateway.moves.SESSIONS_MAX", 3)
    town, nobody, now_s = Town(replica("a"), replica("b")), cast(Any, None), [100.0]
    for number in range(7):
        town.turn("a", f"s{number}")
    moves = Moves(town.fleet, nobody, nobody, nobody, lambda: now_s[0], homes=town.homes)
    drain, left = Drain(town.fleet.named("a"), 4, 0.0), []

    for _ in range(4):
        await moves._evacuate(drain)
        await moves._evacuate(drain)  # not before a second has passed
        left.append(town.homes.counts().get("a", (0, 0))[0])
        now_s[0] += SESSIONS_S

    assert left == [4, 1, 0, 0]
    assert drain.sessions == 7


async def test_draining_and_undraining_twice_changes_nothing_more(monkeypatch):
    """The replica is drained until it is undrained, and what was never drained is not told of."""
    removal = Removal(monkeypatch, stage := Stage(call_for(), Engine([ANSWER])))
    await stage.opened(0)
    moves, b = removal.moves, stage.fleet.named("b")

    first, second = moves.drain("b", 2), moves.drain("b", 3)
    drained = b.drained, b.why_drained
    undone = [moves.undrain("b"), moves.undrain("b")]
    told = list(removal.told)
    stage.legs[0].finish()
    await removal.end()

    assert (first["at_once"], second["at_once"]) == (2, 3)
    assert drained == (True, "an operator drains it")
    assert (undone, b.drained, moves.told("b")["draining"]) == ([True, False], False, False)
    assert told == ["b leaving", "b back"]
    for act in (moves.drain, moves.undrain, moves.told):
        with pytest.raises(KeyError):
            act("nobody")


async def test_a_stream_is_not_moved_to_a_server_that_is_not_like_its_own(monkeypatch):
    """It would have to end there: it stays, until it has ended."""
    removal = Removal(monkeypatch, Stage(call_for(return_token_ids=True), Engine([ANSWER])))
    for name, template in (("a", "c"), ("b", "d")):
        removal.stage.fleet.named(name).traits["tiny"] = Traits("t", template, "s")
    first = await removal.stage.opened(0)
    first.bring(6)
    await removal.drain("a")
    await removal.stage.turn()

    assert first.open
    first.finish()
    await removal.end()
    assert [leg.replica for leg in removal.stage.legs] == ["a"]
    assert removal.stage.seen.text[0] == text_of(ANSWER)
