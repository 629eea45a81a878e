"""Who continues a stream by replay: after a loss, in a race, and when it is moved."""

import json

import pytest

from gateway.stream.leg_end import Cause
from guards.continuing import Way
from guards.refusal import Ending
from tests.gateway.stage import Stage, continuing
from tests.gateway.stream.fakes import BROKEN, PROMPT, Engine, call_for, ids_of, text_of
from tests.gateway.test_moves import Removal

ANSWER = ids_of("first ü 🦀, and on")
OTHER = ids_of("second, somewhat longer ö")
TOOLS = [{"type": "function"}]


def needy(**more):
    """A request that cannot go on from its ids alone."""
    return call_for(tools=TOOLS, return_token_ids=True, **more)


def resumed(stage: Stage, number: int) -> bool:
    return "holdfast_resume" in (json.loads(stage.legs[number].ask.body).get("vllm_xargs") or {})


async def test_a_stream_goes_on_where_it_can_be_replayed():
    """Not at the replica that is nearer, but could only be given its ids; and it is told how it went on."""
    stage = Stage(needy(), Engine([ANSWER]), replicas="abc", continues="c")
    first = await stage.opened(0)
    first.bring(6)
    first.end(BROKEN)
    (await stage.opened(1)).finish()
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", "c"]
    assert resumed(stage, 1)
    assert stage.record.ways == [None, Way.REPLAY]
    assert (stage.seen.ids[0], stage.seen.text[0]) == (ANSWER, text_of(ANSWER))
    assert stage.relay.ending is Ending.FINISHED


@pytest.mark.parametrize(
    ("fingerprints", "at", "way"),
    [({}, "c", Way.REPLAY), ({"a": "aa", "b": "aa", "c": "bb"}, "b", Way.IDS), ({"a": "aa", "b": "bb", "c": "aa"}, "c",
      Way.REPLAY)],
)  # fmt: skip
async def test_a_replay_is_preferred_but_not_to_the_same_weights(fingerprints, at, way):
    """What could go on from its ids, too, goes on by replay among replicas that are as good otherwise."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]), replicas="abc", continues="c")
    for name in "abc":
        known = continuing(fingerprint=fingerprints.get(name, ""), **({} if name == "c" else {"continues": None}))
        stage.fleet.named(name).pages = known
    first = await stage.opened(0)
    first.bring(6)
    first.end(BROKEN)
    (await stage.opened(1)).finish()
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", at]
    assert stage.record.ways == [None, way]
    assert stage.seen.text[0] == text_of(ANSWER)


@pytest.mark.parametrize(
    "pages",
    [
        continuing(at_s=84.0),  # longer ago than is relied on
        continuing(at_s=99.0),  # before it came up
        continuing(continues=None, continues_not="patches do not fit"),
        continuing(continues={"protocol": 2, "seeds": True, "refused": []}),
        continuing(continues={"protocol": 1, "seeds": True, "refused": ["tools"]}),
        continuing(continues="yes"),
    ],
)
async def test_what_is_not_known_to_be_continued_ends_by_name(pages):
    """Also where it was known a while ago, or before the server was started anew."""
    stage = Stage(needy(), Engine([ANSWER]))
    stage.fleet.named("b").pages = pages
    first = await stage.opened(0)
    first.bring(6)
    first.end(BROKEN)
    await stage.end()

    assert len(stage.legs) == 1
    assert stage.relay.ending is Ending.UNCONTINUABLE
    assert b"and tools cannot be continued exactly on another." in stage.sink.data


async def test_a_lost_replay_goes_on_at_the_next_replica_that_continues():
    """In the middle of its replay, and after it."""
    stage = Stage(needy(), Engine([ANSWER]), replicas="abcd", continues="bcd")
    first = await stage.opened(0)
    first.bring(6)
    first.end(BROKEN)
    for number, events in ((1, 3), (2, 9)):
        leg = await stage.opened(number)
        leg.bring(events)
        leg.end(BROKEN)
    stage.relay._legs_left = 1
    (await stage.opened(3)).finish()
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", "b", "c", "d"]
    assert stage.seen.ids[0] == ANSWER
    assert stage.relay.failovers == 3


@pytest.mark.parametrize("cut", range(2, len(ANSWER) + 1))
async def test_a_silent_leg_is_outrun_by_a_replay(cut):
    """Whatever the request uses: the race is won by the first token that the client does not have."""
    stage = Stage(needy(), Engine([ANSWER]), replicas="abc", continues="c")
    first = await stage.opened(0)
    first.bring(cut)
    await stage.silent(first)
    second = await stage.opened(1)

    second.bring(cut)  # all that it replays
    assert not first.over
    second.finish()
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", "c"]
    assert (first.cause, stage.record.wins) == (Cause.CLOSED, ["c"])
    assert (stage.seen.ids[0], stage.seen.text[0]) == (ANSWER, text_of(ANSWER))
    assert stage.relay.house.recomputed == len(PROMPT) + cut - 1
    assert stage.relay.failovers == 1


async def test_a_race_that_the_silent_leg_wins_shows_nothing():
    """The client's bytes are those of a stream to which nothing happened."""
    stage = Stage(needy(), Engine([ANSWER]), continues="b")
    calm = Stage(needy(), Engine([ANSWER]))
    (await calm.opened(0)).finish()
    await calm.end()
    first = await stage.opened(0)
    first.bring(6)
    await stage.silent(first)
    second = await stage.opened(1)
    second.bring(4)
    first.finish()
    await stage.end()

    assert second.cause is Cause.CLOSED
    assert stage.sink.data == calm.sink.data
    assert stage.relay.house.hedged == len(PROMPT) + 5
    assert not stage.relay._telling.distrusts


@pytest.mark.parametrize("before", [3, 8])
async def test_a_silent_leg_that_is_lost_leaves_its_stream_to_the_replay(before):
    """Wherever that is by then."""
    stage = Stage(needy(), Engine([ANSWER]), continues="b")
    first = await stage.opened(0)
    first.bring(6)
    await stage.silent(first)
    second = await stage.opened(1)
    second.bring(min(before, 6))
    first.end(BROKEN)
    await stage.turn()
    second.finish()
    await stage.end()

    assert len(stage.legs) == 2
    assert stage.seen.ids[0] == ANSWER


async def test_one_leg_races_for_all_choices():
    """Those that are finished are left alone."""
    stage = Stage(needy(n=2), Engine([ids_of("one"), OTHER]), continues="b")
    first = await stage.opened(0)
    first.bring(14)
    await stage.silent(first)
    (await stage.opened(1)).finish()
    await stage.end()

    assert len(stage.legs) == 2
    assert stage.seen.ids == {0: ids_of("one"), 1: OTHER}


async def test_a_race_whose_replay_is_another_one_is_given_up():
    """The silent leg goes on, and nothing of the other one reaches the client."""
    stage = Stage(needy(), Engine([ANSWER]), continues="b")
    first = await stage.opened(0)
    first.bring(6)
    await stage.silent(first)
    second = await stage.opened(1)
    second.raws = [raw.replace(b'"token_ids":[%d]' % ANSWER[1], b'"token_ids":[7]') for raw in second.raws]
    second.bring(4)
    await stage.turn()

    assert second.cause is Cause.CLOSED
    first.finish()
    await stage.end()
    assert stage.seen.ids[0] == ANSWER


async def test_before_the_first_token_a_race_is_seeded_where_that_is_of_use():
    """Each of the two by what its own replica can."""
    stage = Stage(call_for(temperature=0.7), Engine([ANSWER]), continues="b")
    first = await stage.opened(0)
    await stage.silent(first)
    (await stage.opened(1)).finish()
    await stage.end()

    seeds = [json.loads(leg.ask.body).get("seed") for leg in stage.legs]
    assert seeds[0] is None
    assert isinstance(seeds[1], int)


@pytest.mark.parametrize(("continues", "moved"), [("b", 1), ("", 0), ("a", 0)])
async def test_what_can_be_replayed_can_be_moved(monkeypatch, continues, moved):
    """A stream that uses tools leaves its server where another one continues it, and stays where none does."""
    removal = Removal(monkeypatch, stage := Stage(needy(), Engine([ANSWER]), continues=continues))
    first = await stage.opened(0)
    first.bring(5)
    await removal.drain("a")
    if moved:
        (await stage.opened(1)).finish()
    else:
        first.finish()
    await stage.turn()
    told = removal.moves.told("a")
    await removal.end()

    assert (told["moved"], first.cause is Cause.MOVED) == (moved, bool(moved))
    assert list(told["left"]) == ([] if moved else ["tools cannot be continued exactly on another"])
    assert stage.seen.ids[0] == ANSWER
