"""Several legs of one stream: losses, and races beside silent legs, as the flow sees to them."""

import json
from collections.abc import Sequence
from functools import partial

import pytest

from gateway.fleet.page_status import read
from gateway.fleet.replicas import Care
from gateway.stream.call import Endpoint
from gateway.stream.leg_end import Cause, LegEnd
from gateway.stream.seams import House
from gateway.stream.text import RemoteDecoder, TextLost
from guards.health import Health
from guards.kinship import Traits
from guards.refusal import Ending
from loadtests.stub_server import PAGES
from tests.gateway.stage import Stage, causes
from tests.gateway.stream.fakes import BROKEN, PROMPT, Engine, FakeLease, Play, call_for, ids_of, terms_for, text_of

ANSWER = ids_of("first ü 🦀, and on")
OTHER = ids_of("second, somewhat longer ö")
BAD_REQUEST = LegEnd(Cause.REFUSED, "the server answered status 400", 400, b"{}")


async def uncut(call, answers):
    """The bytes of a stream that nothing happens to."""
    return (await Play(call, Engine(answers)).run()).sink.data


async def test_a_choice_whose_leg_is_lost_does_not_wait_for_its_siblings():
    """After a failover each choice has a leg; when one is lost, the others at that server are closed, and all go on."""
    stage = Stage(call_for(n=2, return_token_ids=True), Engine([ANSWER, OTHER]), replicas="abc")
    first = await stage.opened(0)
    first.bring(8)
    first.end(BROKEN)
    left, right = await stage.opened(1), await stage.opened(2)
    left.bring(3)
    right.bring(3)

    left.end(BROKEN)
    last = await stage.opened(4)
    assert right.cause is Cause.CLOSED
    assert [leg.replica for leg in stage.legs] == ["a", "b", "b", "c", "c"]
    for leg in (stage.legs[3], last):
        leg.finish()
    await stage.end()

    assert [lost for _, _, lost in stage.record.ends] == [True, True, True, False, False]
    assert stage.seen.text == {0: text_of(ANSWER), 1: text_of(OTHER)}
    assert stage.seen.ids == {0: ANSWER, 1: OTHER}


@pytest.mark.parametrize("cut", range(2, len(ANSWER) + 1))
async def test_a_silent_leg_is_outrun_by_a_second_one(cut):
    """At whatever token a server falls silent, another one takes over exactly, and the silent leg is closed."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]))
    first = await stage.opened(0)
    first.bring(cut)
    await stage.silent(first)
    second = await stage.opened(1)

    assert first.open
    second.finish()
    await stage.end()

    assert (second.replica, stage.record.hedges, stage.record.wins) == ("b", ["b"], ["b"])
    assert stage.record.ends == [("a", Cause.CLOSED, False), ("b", Cause.DONE, False)]
    assert stage.seen.text[0] == text_of(ANSWER)
    assert stage.seen.ids[0] == ANSWER
    assert (stage.relay.failovers, stage.relay.house.recomputed) == (1, len(PROMPT) + cut - 1)
    assert stage.relay.house.hedged == 0
    assert stage.sink.replica == "b"


@pytest.mark.parametrize("cut", range(2, len(ANSWER)))
async def test_a_wrong_suspicion_costs_the_client_nothing(cut):
    """When the silent server speaks first, its bytes go on as if nothing had been, and the second leg is closed."""
    call = call_for(return_token_ids=True)
    stage = Stage(call, Engine([ANSWER]))
    first = await stage.opened(0)
    first.bring(cut)
    await stage.silent(first)
    second = await stage.opened(1)

    first.finish()
    await stage.end()

    assert causes([first, second]) == [Cause.DONE, Cause.CLOSED]
    assert stage.sink.data == await uncut(call, [ANSWER])
    assert (stage.relay.failovers, stage.relay.house) == (0, House(hedged=len(PROMPT) + cut - 1))
    assert stage.record.wins == []


async def test_the_first_token_of_the_silent_server_ends_the_race():
    """Not only its last: what the second server would compute until then is for nothing."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]))
    first = await stage.opened(0)
    first.bring(5)
    await stage.silent(first)
    second = await stage.opened(1)

    first.bring(1)
    await stage.turn()

    assert causes([second]) == [Cause.CLOSED]
    first.finish()
    await stage.end()


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("winner", [0, 1])
async def test_before_the_first_token_the_whole_request_is_raced(head, winner):
    """A server that answers and then says nothing is raced with the same request; the prompt is charged once."""
    call = call_for(tools=[{"type": "function", "function": {"name": "f"}}], return_token_ids=True)
    stage = Stage(call, Engine([ANSWER]))
    first = await stage.opened(0)
    first.bring(head)
    await stage.silent(first)
    second = await stage.opened(1)

    assert second.ask.path == Endpoint.CHAT
    second.bring(1)  # the head alone wins nothing
    (first, second)[winner].finish()
    await stage.end()

    assert causes([first, second])[1 - winner] is Cause.CLOSED
    assert stage.seen.ids[0] == ANSWER
    assert stage.lease.counted == len(PROMPT) + len(ANSWER)
    assert stage.relay.failovers == 0
    assert stage.sink.replica == "ab"[winner]
    assert stage.seen.roles == {0: 1}


@pytest.mark.parametrize("cut", [0, 1, 4])
async def test_a_leg_that_is_lost_during_a_race_leaves_the_stream_to_its_rival(cut):
    """No third leg is opened: the second one is on its way already."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]), replicas="abc")
    first = await stage.opened(0)
    first.bring(cut)
    await stage.silent(first)
    second = await stage.opened(1)

    first.end(BROKEN)
    await stage.turn()
    second.finish()
    await stage.end()

    assert len(stage.legs) == 2
    assert stage.seen.text[0] == text_of(ANSWER)
    assert stage.relay.failovers == (cut > 1)
    assert stage.record.ends[0] == ("a", Cause.BROKEN, True)


@pytest.mark.parametrize("end", [BROKEN, BAD_REQUEST])
async def test_a_rival_that_fails_harms_nobody(end):
    """The silent leg still counts; another server is asked, and the one that failed is not asked again."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]), replicas="abc")
    first = await stage.opened(0)
    first.bring(3)
    await stage.silent(first)
    second = await stage.opened(1)
    second.end(end)
    await stage.opened(2)

    first.finish()
    await stage.end()

    assert causes(stage.legs) == [Cause.DONE, end.cause, Cause.CLOSED]
    assert stage.seen.text[0] == text_of(ANSWER)
    assert stage.relay.failovers == 0


async def test_a_rival_that_is_silent_too_is_replaced():
    """When the second server hangs as well, a third is asked; the first leg stays through all of it."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]), replicas="abc")
    first = await stage.opened(0)
    first.bring(3)
    await stage.silent(first)
    second = await stage.opened(1)
    await stage.silent(second)
    third = await stage.opened(2)

    assert (first.open, second.open) == (True, False)
    third.finish()
    await stage.end()
    assert stage.seen.text[0] == text_of(ANSWER)


async def test_a_rival_without_a_replacement_is_waited_for():
    """A slow second server is better than none."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]))
    first = await stage.opened(0)
    first.bring(3)
    await stage.silent(first)
    second = await stage.opened(1)
    await stage.silent(second)

    assert (first.open, second.open, len(stage.legs)) == (True, True, 2)
    second.finish()
    await stage.end()
    assert stage.seen.text[0] == text_of(ANSWER)


@pytest.mark.parametrize("cut", range(3, 12))
async def test_choices_of_one_silent_leg_are_raced_one_by_one(cut):
    """Each choice is won by itself; the first leg is closed once it brings none of them any more."""
    stage = Stage(call_for(n=2, return_token_ids=True), Engine([ANSWER, OTHER]))
    first = await stage.opened(0)
    first.bring(cut + 1)
    await stage.silent(first)
    left, right = await stage.opened(1), await stage.opened(2)

    left.bring(3)
    assert first.open
    right.bring(3)
    assert not first.open
    left.finish()
    right.finish()
    await stage.end()

    assert stage.seen.text == {0: text_of(ANSWER), 1: text_of(OTHER)}
    assert stage.seen.ids == {0: ANSWER, 1: OTHER}


async def test_a_leg_that_lost_one_choice_goes_on_with_the_other():
    """What a silent leg brings of a choice that it lost is ignored; the other choice's rival loses."""
    stage = Stage(call_for(n=2, return_token_ids=True), Engine([ANSWER, OTHER]))
    first = await stage.opened(0)
    first.bring(9)
    await stage.silent(first)
    left, right = await stage.opened(1), await stage.opened(2)
    left.bring(3)

    first.bring(2)  # one event of each choice
    assert (first.open, right.open) == (True, False)
    left.finish()
    first.finish()
    await stage.end()

    assert stage.seen.text == {0: text_of(ANSWER), 1: text_of(OTHER)}
    assert stage.seen.ids == {0: ANSWER, 1: OTHER}


@pytest.mark.parametrize("said", [{"seed": 1, "temperature": 1.0}, {"logprobs": True}])
async def test_what_cannot_go_on_exactly_is_not_raced(said):
    """The silent leg is waited for; racing it would give another answer."""
    stage = Stage(call_for(**said), Engine([ANSWER]))
    first = await stage.opened(0)
    first.bring(3)
    await stage.silent(first)

    assert len(stage.legs) == 1
    first.finish()
    await stage.end()
    assert stage.relay.ending is Ending.FINISHED


@pytest.mark.parametrize("why", ["no other", "down", "doubtful", "no allowance", "not wanted"])
async def test_no_race_is_run_where_it_would_do_harm(why):
    """A second leg needs a server that is up and not slow itself, an allowance, and somebody who wants it."""
    call = call_for()
    care = Care(60.0, 1.0, hedges_per_s=0.0, hedges_burst=0) if why == "no allowance" else None
    terms = terms_for(call, hedges_max=0) if why == "not wanted" else None
    stage = Stage(call, Engine([ANSWER]), replicas="a" if why == "no other" else "ab", care=care, terms=terms)
    first = await stage.opened(0)
    first.bring(3)
    if why == "down":
        stage.fleet.all()[1].health = stage.fleet.all()[1].health.ejected(["a test"])
    other = stage.fleet.watch("b", 10, lambda: None) if why == "doubtful" else None
    if other is not None:
        other.silence()
    await stage.silent(first)

    assert len(stage.legs) == 1
    if other is not None:
        other.over()
    first.finish()
    await stage.end()


async def test_a_race_that_asks_nothing_is_no_call_of_its_server():
    """Its breaker counts nothing, again and again, lest it never have a probe for anybody."""
    call = call_for()
    stage = Stage(call, Engine([ANSWER]), terms=terms_for(call, hedges_max=0))
    first = await stage.opened(0)
    first.bring(3)
    for _ in range(3):
        await stage.silent(first)

    assert "tiny" not in stage.fleet.named("b").breakers
    first.finish()
    await stage.end()


async def test_races_of_one_request_are_bounded():
    """Each costs the fleet a prompt; after hedges_max of them the silent leg is only waited for."""
    call = call_for()
    stage = Stage(call, Engine([ANSWER]), terms=terms_for(call, hedges_max=3))
    first = await stage.opened(0)
    first.bring(2)
    for _ in range(5):
        await stage.silent(first)
        first.bring(1)
        await stage.turn()

    assert len(stage.legs) == 1 + 3
    first.finish()
    await stage.end()


async def test_a_winner_waits_for_its_lease():
    """What a rival brings is covered like all else, and the silent leg is closed although nothing was written yet."""
    lease = FakeLease(leased=len(PROMPT) + 6, left=100, step=4, low=0)
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]), lease=lease, per_chunk=4)
    first = await stage.opened(0)
    first.bring(2)
    await stage.silent(first)
    second = await stage.opened(1)

    second.bring(1)
    assert not first.open
    assert second.paused
    for _ in range(20):
        lease.answer()
        second.bring()
    second.finish()
    await stage.end()
    assert stage.seen.ids[0] == ANSWER


async def test_a_stream_whose_last_token_came_is_ended_here():
    """A server that hangs between the last token and the finish, or the [DONE], delays nobody."""
    call = call_for(max_tokens=8, return_token_ids=True)
    stage = Stage(call, Engine([ANSWER]))
    first = await stage.opened(0)
    first.bring(9)  # role and eight tokens, the last one with its finish; usage or [DONE] never come
    await stage.silent(first)
    await stage.end()

    assert len(stage.legs) == 1
    assert (stage.relay.ending, stage.seen.finish) == (Ending.FINISHED, {0: "length"})
    assert stage.seen.done


async def test_a_stream_that_cannot_go_on_ends_at_once():
    """No server can say its text any more: nothing is asked for, and nobody waits for news of that."""

    async def decode(ids: Sequence[int]) -> str:
        raise TextLost("no server's /detokenize answered")

    call = call_for(return_token_ids=True)
    terms = terms_for(call, decoder=partial(RemoteDecoder, decode), spells_special=True)
    stage = Stage(call, Engine([ANSWER]), terms=terms)
    first = await stage.opened(0)
    first.bring(4)

    first.end(BROKEN)
    await stage.end()

    assert len(stage.legs) == 1
    assert stage.relay.ending is Ending.UNCONTINUABLE


async def test_a_stream_that_is_lost_after_its_last_token_is_whole():
    """Its end is made here, since nothing is left to be asked for."""
    stage = Stage(call_for(max_tokens=8, return_token_ids=True), Engine([ANSWER]))
    first = await stage.opened(0)
    first.raws[9:] = []
    first.raws[8] = first.raws[8].replace(b'"finish_reason":"length"', b'"finish_reason":null')
    first.bring()

    first.end(BROKEN)
    await stage.end()

    assert len(stage.legs) == 1
    assert (stage.relay.ending, stage.seen.finish, stage.seen.ids) == (Ending.FINISHED, {0: "length"}, {0: ANSWER[:8]})


ALIKE, STRANGE = Traits("t", "c", "s"), Traits("t", "d", "s")


def family(stage: Stage, **traits: Traits) -> None:
    for name, found in traits.items():
        stage.fleet.named(name).traits["tiny"] = found


async def test_a_stream_goes_on_only_at_a_server_that_is_like_the_one_that_was_lost():
    """The other one is asked neither first nor at last; its template differs."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]), replicas="abc")
    family(stage, a=ALIKE, b=STRANGE, c=ALIKE)
    first = await stage.opened(0)
    first.bring(6)
    first.end(BROKEN)

    second = await stage.opened(1)
    second.finish()
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", "c"]
    assert stage.seen.text[0] == text_of(ANSWER)


async def test_a_stream_ends_with_the_reason_where_only_others_are_left():
    """What differs is named."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]))
    family(stage, a=ALIKE, b=STRANGE)
    first = await stage.opened(0)
    first.bring(6)
    first.end(BROKEN)
    again = await stage.opened(1)
    again.end(LegEnd(Cause.UNREACHED, "no connection"))
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", "a"]
    assert stage.relay.ending is Ending.UNCONTINUABLE
    assert b"cannot be continued exactly on another: those that are left have another chat template" in stage.sink.data
    assert b"[DONE]" not in stage.sink.data


@pytest.mark.parametrize("lost", [True, False])
async def test_before_the_first_token_any_server_will_do(lost):
    """The request is asked anew, whole: nothing of it comes from elsewhere."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]))
    family(stage, a=ALIKE, b=STRANGE)
    first = await stage.opened(0)
    if lost:
        first.end(BROKEN)
    else:
        await stage.silent(first)

    (await stage.opened(1)).finish()
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", "b"]
    assert stage.seen.text[0] == text_of(ANSWER)


async def test_a_server_that_differs_races_nobody():
    """The one that is like the silent one does."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]), replicas="abc")
    family(stage, a=ALIKE, b=STRANGE, c=ALIKE)
    first = await stage.opened(0)
    first.bring(6)
    await stage.silent(first)

    (await stage.opened(1)).finish()
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", "c"]


async def test_of_a_server_that_was_outrun_there_are_tokens_too():
    """The winner did not tell its template: who goes on after it must be like the first."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]), replicas="abcd")
    family(stage, a=ALIKE, c=STRANGE, d=ALIKE)
    first = await stage.opened(0)
    first.bring(4)
    await stage.silent(first)
    second = await stage.opened(1)
    second.bring(4)
    await stage.turn()
    stage.fleet.named("a").health = Health(up=False, why="gone")
    second.end(BROKEN)

    (await stage.opened(2)).finish()
    await stage.end()

    assert [leg.replica for leg in stage.legs] == ["a", "b", "d"]
    assert stage.seen.text[0] == text_of(ANSWER)


@pytest.mark.parametrize(
    ("fingerprints", "replica", "same"),
    [("112", "b", True), ("121", "c", True), ("122", "b", False), ("1--", "b", None), ("-22", "b", None)],
)
async def test_a_server_of_the_same_fingerprint_is_preferred(fingerprints, replica, same):
    """One whose weights are others takes a stream where there is none; whether they are is told."""
    stage = Stage(call_for(return_token_ids=True), Engine([ANSWER]), replicas="abc")
    for name, digit in zip("abc", fingerprints, strict=True):
        if digit != "-":
            stage.fleet.named(name).pages.status = read(json.dumps(PAGES | {"fingerprint": digit * 8}).encode(), 0.0)
    first = await stage.opened(0)
    first.bring(6)
    first.end(BROKEN)
    second = await stage.opened(1)
    second.finish()
    await stage.end()

    assert second.replica == replica
    assert stage.record.same == [None, same]
