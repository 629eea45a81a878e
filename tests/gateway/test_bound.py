"""Streams that go on only under the fingerprint that they began under."""

import asyncio
from typing import Any, cast

import pytest

from gateway.session_moves import UNBOUND, SessionMoves
from gateway.stream.leg_end import Cause, LegEnd
from guards.refusal import Ending
from tests.gateway.stage import Stage, continuing
from tests.gateway.stream.fakes import BROKEN, Engine, call_for, ids_of, text_of
from tests.gateway.test_moves import Legged, Removal, Stream

ANSWER = ids_of("first ü 🦀, and on")
OLD, NEW = "01d0" * 16, "0ddb" * 16


def bound(replicas: str, **fingerprints: str) -> Stage:
    """A stream over replicas that told these fingerprints just now; others have told nothing."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]), replicas=replicas)
    for one in stage.fleet.all():
        one.bound = True
        if one.name in fingerprints:
            tells(stage, one.name, fingerprints[one.name])
    return stage


def tells(stage: Stage, name: str, fingerprint: str) -> None:
    stage.fleet.named(name).pages = continuing(stage.now_s, fingerprint=fingerprint)


async def test_a_stream_goes_on_as_it_began_whatever_its_server_is_by_now():
    """That was started anew with other weights, unseen, before its leg was lost: the third is as it was."""
    stage = bound("abc", a=OLD, b=NEW, c=OLD)
    first = await stage.opened(0)
    first.bring(6)
    tells(stage, "a", NEW)
    first.end(BROKEN)

    (await stage.opened(1)).finish()
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", "c"]
    assert stage.seen.text[0] == text_of(ANSWER)
    assert stage.record.same == [None, True]


@pytest.mark.parametrize("told", [{"a": OLD}, {"b": OLD}, {}])
@pytest.mark.parametrize("silent", [True, False])
async def test_a_stream_does_not_go_on_where_a_fingerprint_is_not_known(told, silent):
    """Of where it began, or of where it would go; it is not raced there either, and ends with an error by name."""
    stage = bound("ab", **told)
    first = await stage.opened(0)
    first.bring(6)
    if silent:
        await stage.silent(first)
        assert len(stage.legs) == 1
    first.end(BROKEN)
    if "a" in told:  # its own server is asked once more, for all that is known that is as it was
        (await stage.opened(1)).end(LegEnd(Cause.UNREACHED, "no connection"))
    await stage.end()

    assert {leg.replica for leg in stage.legs} == {"a"}
    assert stage.relay.ending is Ending.UNCONTINUABLE
    assert b"have another fingerprint, or none that is known" in stage.sink.data
    assert b"[DONE]" not in stage.sink.data


@pytest.mark.parametrize(("began", "told"), [(OLD, OLD), (NEW, OLD), ("", OLD), (OLD, "")])
async def test_a_drained_servers_stream_is_moved_only_where_it_may_go_on(monkeypatch, began, told):
    """Else it stays to its end: it began under something else, or where nothing was known, or nothing is there."""
    stage = bound("ab", a=began, b=told)
    removal = Removal(monkeypatch, stage)
    first = await stage.opened(0)
    first.bring(3)
    tells(stage, "a", OLD)
    drained = await removal.drain("a")
    if began == told:
        (await stage.opened(1)).finish()
    else:
        assert drained["alone"] == ["tiny"]
        first.finish()
    await removal.end()

    assert [leg.replica for leg in stage.legs] == (["a", "b"] if began == told else ["a"])
    assert stage.seen.text[0] == text_of(ANSWER)


async def test_a_session_is_moved_only_where_its_streams_may_go_on(monkeypatch):
    """As a drained server's: what may not go there is left, with the reason."""
    removal = Removal(monkeypatch, stage := bound("ab", a=OLD, b=OLD))
    (await stage.opened(0)).finish()
    leg, nobody = cast(Any, Legged(Stream())), cast(Any, None)
    stage.legs.append(leg)
    moves = SessionMoves(stage.fleet, nobody, nobody, nobody, nobody, lambda: stage.now_s)
    monkeypatch.setattr(moves, "_upstream", removal)
    there, left = stage.fleet.named("b"), dict[str, int]()

    async with asyncio.timeout(2):
        await moves._move(leg.receiver.stream, there, [], left)
    still = leg.open
    leg.receiver.bond = frozenset({OLD})
    may = await moves._stays(leg.receiver.stream, there)
    leg.end(BROKEN)
    await removal.end()

    assert (left, still, may) == ({UNBOUND: 1}, True, None)


async def test_before_the_first_token_a_bound_stream_may_go_anywhere():
    """Nothing of it is of any weights yet."""
    stage = bound("ab", a=OLD)
    (await stage.opened(0)).end(BROKEN)

    (await stage.opened(1)).finish()
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", "b"]
    assert stage.seen.text[0] == text_of(ANSWER)
