"""Streams that go on only under the fingerprint that they began under."""

import pytest

from gateway.stream.leg_end import Cause, LegEnd
from guards.refusal import Ending
from tests.gateway.stage import Stage, continuing
from tests.gateway.stream.fakes import BROKEN, Engine, call_for, ids_of, text_of

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


async def test_before_the_first_token_a_bound_stream_may_go_anywhere():
    """Nothing of it is of any weights yet."""
    stage = bound("ab", a=OLD)
    (await stage.opened(0)).end(BROKEN)

    (await stage.opened(1)).finish()
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", "b"]
    assert stage.seen.text[0] == text_of(ANSWER)
