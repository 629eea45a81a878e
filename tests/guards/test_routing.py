"""Which replica is next."""

import subprocess
import sys
from collections import Counter
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.routing import SLACK, SLOTS, USUAL, Candidate, Slack, choose, pick, roomy, soon

CANDIDATES = st.lists(
    st.builds(
        Candidate, st.sampled_from("abcdef"), st.booleans(), st.booleans(), st.integers(0, 3), st.booleans(),
        st.booleans(), st.integers(0, 3), st.sampled_from((0.125, 0.5, 1.0)), st.none(), st.booleans(),
    ),
    max_size=6, unique_by=lambda one: one.name,
)  # fmt: skip
AVOID = st.frozensets(st.sampled_from("abcdef"))


def rank(one: Candidate, avoid: frozenset[str]) -> tuple[float, ...]:
    """What is better comes first."""
    busy = (one.tokens + USUAL) / one.weight, (one.load + 1) / one.weight
    return not one.up, one.name in avoid, one.refused, one.drained, one.doubtful, one.other, one.standby, *busy


def up(name: str, load: int = 0, standby: bool = False) -> Candidate:
    return Candidate(name, True, standby, load)


def down(name: str, load: int = 0) -> Candidate:
    return Candidate(name, False, False, load)


def test_the_order_is_up_then_not_failed_then_active_then_load_then_name():
    """Each rule decides only between those that are equal by the rules before it."""
    assert pick([down("a"), up("b", 9)]) == "b"
    assert pick([up("a"), up("b", 9, standby=True)], frozenset("a")) == "b"
    assert pick([up("a", standby=True), up("b", 9)]) == "b"
    assert pick([up("a", 2), up("b", 1)]) == "b"
    assert pick([up("a", 1), up("b", 1)]) == "a"


def test_a_doubtful_server_comes_after_the_others_and_before_those_that_failed():
    """A server most of whose streams are silent gets a request only where the others are worse."""
    doubtful = Candidate("a", True, False, 0, doubtful=True)

    assert pick([doubtful, up("b", 9, standby=True)]) == "b"
    assert pick([doubtful, up("b")], frozenset("b")) == "a"
    assert pick([doubtful, down("b")]) == "a"
    assert pick([doubtful]) == "a"


def test_a_request_that_waits_goes_where_there_is_room():
    """Also to a server that stands by, while those that are active are full; to none where all are."""
    crew = [up("a"), up("b"), up("c", standby=True)]

    assert pick(roomy(crew, lambda name: True)) == "a"
    assert pick(roomy(crew, lambda name: name != "a")) == "b"
    assert pick(roomy(crew, lambda name: name == "c")) == "c"
    assert roomy(crew, lambda name: False) == roomy([], lambda name: True) == []


@pytest.mark.parametrize("worse", [{"refused": True}, {"doubtful": True}, {"drained": True}])
def test_a_request_waits_for_a_good_server_rather_than_going_to_a_bad_one(worse):
    """One that fails what it is sent always has room. Where all are as bad, it goes to one of these."""
    good, bad = up("a"), Candidate("b", True, False, 0, **worse)

    assert roomy([good, bad], lambda name: name == "b") == []
    assert roomy([good, bad], lambda name: True) == [good]
    assert roomy([bad, bad._replace(name="c")], lambda name: name == "c") == [bad._replace(name="c")]


def test_a_server_of_another_model_goes_on_only_where_no_sound_one_has_the_same():
    """Then it does: its weights are what an operator chose. Before that a standby, but none that is of no use."""
    other = up("a")._replace(other=True)

    assert pick([other, up("b", 9)]) == "b"
    assert pick([other, up("b", 9, standby=True)]) == "b"
    assert pick([other, Candidate("b", True, False, 0, drained=True)]) == "a"
    assert pick([other, down("b")]) == "a"
    assert pick([other, up("b")], frozenset("b")) == "a"


def test_a_refused_server_comes_after_the_others_and_before_those_that_failed():
    """A server whose breaker is open, or that came up only just, gets a request where all others are worse."""
    refused = Candidate("a", True, False, 0, refused=True)

    assert pick([refused, up("b", 9, standby=True)]) == "b"
    assert pick([refused, Candidate("b", True, False, 9, doubtful=True)]) == "b"
    assert pick([refused, up("b")], frozenset("b")) == "a"
    assert pick([refused, down("b")]) == "a"
    assert pick([refused]) == "a"


def test_a_drained_server_is_asked_only_where_all_others_are_of_no_use():
    """While any other one is well, stands by, or is merely doubtful, it gets nothing; it is better than none."""
    drained = Candidate("a", True, False, 0, drained=True)

    assert pick([drained, up("b", 9)]) == "b"
    assert pick([drained, up("b", 9, standby=True)]) == "b"
    assert pick([drained, Candidate("b", True, False, 9, doubtful=True)]) == "b"
    assert pick([drained, up("b"), up("c")], frozenset("b")) == "c"
    assert pick([drained, Candidate("b", True, False, 0, refused=True)]) == "a"
    assert pick([drained, up("b")], frozenset("b")) == "a"
    assert pick([drained, down("b")]) == "a"
    assert pick([drained]) == "a"


def test_a_server_of_less_weight_gets_less_and_not_nothing():
    """With an eighth of the weight it is next when each other one has eight times its tokens."""
    light = Candidate("a", True, False, 0, weight=0.125)

    assert pick([light, up("b")._replace(tokens=6 * USUAL)]) == "b"
    assert pick([light, up("b")._replace(tokens=8 * USUAL)]) == "a"


def test_a_replica_held_for_down_is_tried_when_nothing_else_is_left():
    """The verdict may be stale; but who failed this very request and is down is not tried again."""
    assert pick([down("a", 3), down("b", 1)]) == "b"
    assert pick([down("a"), down("b")], frozenset("b")) == "a"
    assert pick([down("a")], frozenset("a")) is None
    assert pick([]) is None


def test_who_failed_and_is_up_comes_before_who_is_down():
    """A server that lost this request and answers its probes is a better bet than one that does not."""
    assert pick([down("a"), up("b")], frozenset("b")) == "b"


@given(CANDIDATES, AVOID)
def test_somebody_is_picked_whenever_somebody_could_answer(candidates, avoid):
    """None only when every replica is both down and failed; never one that is worse by any rule."""
    named = {one.name: one for one in candidates}

    picked = pick(candidates, avoid)

    assert (picked is None) == all(not one.up and one.name in avoid for one in candidates)
    if picked is not None:
        assert rank(named[picked], avoid) == min(rank(c, avoid) for c in candidates if c.up or c.name not in avoid)


def crew(count: int, **weights: float) -> list[Candidate]:
    """So many replicas that are up, all of them idle."""
    names = [f"10.0.0.{number}:8000" for number in range(count)]
    return [Candidate(name, True, False, 0, weight=weights.get(f"w{number}", 1.0)) for number, name in enumerate(names)]


def homes(candidates: list[Candidate]) -> list[str | None]:
    """Where each slot's requests go."""
    return [pick(candidates, near=slot) for slot in range(SLOTS)]


def test_the_least_busy_has_the_fewest_tokens_for_its_weight():
    """One long prompt is more than many short ones; who may have twice as much is half as busy with it."""
    a, b = up("a", 1)._replace(tokens=9000), up("b", 5)._replace(tokens=2000)

    assert pick([a, b]) == "b"
    assert pick([a._replace(weight=9.0), b]) == "a"


def test_a_predicted_first_token_comes_before_tokens_in_flight():
    """Where somebody predicts it, the soonest first token decides; a few milliseconds do not."""
    a, b = up("a")._replace(tokens=9000, ttft_s=0.2), up("b")._replace(ttft_s=0.4)

    assert pick([a, b]) == "a"
    assert pick([a, b._replace(ttft_s=0.21)]) == "b"


@pytest.mark.parametrize("count", [2, 3, 8])
def test_what_is_near_goes_to_one_replica_and_all_of_it_is_spread(count):
    """The same number has the same replica; of all numbers each replica has about its share."""
    crowd = crew(count)

    found = homes(crowd)

    assert found == homes(list(reversed(crowd)))
    assert all(0.8 < of / SLOTS * count < 1.2 for of in Counter(found).values())
    assert len(set(found)) == count


def test_a_replica_that_goes_takes_only_what_it_had_with_it():
    """The others keep their requests, and with them their caches."""
    crowd = crew(5)
    before, after = homes(crowd), homes(crowd[1:])

    moved = [was for was, now in zip(before, after, strict=True) if was != now]
    assert set(moved) == {crowd[0].name}


def test_shares_are_by_weight():
    """Who weighs three times as much has three times as many."""
    counts = Counter(homes(crew(2, w0=3.0)))

    assert counts["10.0.0.0:8000"] / counts["10.0.0.1:8000"] == pytest.approx(3, rel=0.2)


def test_an_overloaded_replica_passes_to_the_next_in_line_and_no_further():
    """Above its share and the slack it is passed over, by all alike; the next in line is as if it were not there."""
    crowd = crew(4)
    home = pick(crowd, near=7)
    full = [one._replace(tokens=100_000) if one.name == home else one for one in crowd]

    heir = pick(full, near=7)

    assert heir != home
    assert heir == pick([one for one in crowd if one.name != home], near=7)


def test_a_quiet_fleet_stays_where_it_is():
    """Below the slack nobody is passed over, however uneven it is; one token above, its replica is."""
    crowd, slack = crew(2), Slack(1.25, tokens=1000)
    home = pick(crowd, near=1)

    def with_tokens(tokens: int) -> str | None:
        return pick([one._replace(tokens=tokens * (one.name == home)) for one in crowd], near=1, slack=slack)

    most = int(slack.tokens / (1 - slack.ratio / 2))  # = ratio * most / 2 + tokens
    assert with_tokens(most) == home
    assert with_tokens(most + 2) != home


@pytest.mark.parametrize("near", [None, 0, 1, 2, 3])
def test_who_would_be_late_is_passed_over_if_another_one_would_be_in_time(near):
    """However near or idle it is, and by however little it would be: that is what the request is refused for."""
    late, in_time = up("a")._replace(ttft_s=0.51), up("b", 9)._replace(ttft_s=0.5, tokens=9_000)
    later = late._replace(name="c", ttft_s=0.52)

    assert pick([late, in_time, later], near=near, left_s=0.5) == "b"
    assert pick([later, late], near=near, left_s=0.5) == pick([later, late], near=near)  # none would be


@given(
    st.lists(
        st.tuples(st.integers(0, 40_000), st.integers(0, 9), st.sampled_from((0.1, 0.5, 1.0)), st.floats(0.0, 2.0)),
        min_size=1, max_size=5,
    ),
    st.one_of(st.none(), st.integers(0, 50)),
)  # fmt: skip
def test_whose_first_token_comes_soon_is_chosen_whatever_is_predicted_of_the_others(said, near):
    """So nothing need be predicted of them, which costs more than all else of routing."""
    plain = [Candidate(name, True, False, load, tokens=tokens, weight=weight)
             for name, (tokens, load, weight, _) in zip("abcde", said, strict=False)]  # fmt: skip
    timed = [one._replace(ttft_s=first_s) for one, (*_, first_s) in zip(plain, said, strict=True)]
    chosen = choose(plain, near)
    first_s = timed[plain.index(chosen)].ttft_s
    assert first_s is not None

    assert not soon(first_s, near, SLACK, first_s - 1e-9)  # it would be late
    if soon(first_s, near, SLACK, inf):
        assert choose(timed, near).name == chosen.name


@pytest.mark.parametrize("kind", [{"standby": True}, {"doubtful": True}, {"refused": True}])
def test_no_worse_server_is_asked_to_be_in_time(kind):
    """What would be late on a good server is not put on one that fails or stands by."""
    late, worse = up("a")._replace(ttft_s=0.6), up("b")._replace(ttft_s=0.1, **kind)

    assert pick([late, worse], left_s=0.5) == "a"


def test_where_the_first_token_would_come_late_is_passed_over():
    """A cache is no use behind a queue."""
    crowd = [one._replace(ttft_s=0.1) for one in crew(3)]
    home = pick(crowd, near=3)

    def late(ttft_s: float) -> str | None:
        return pick([one._replace(ttft_s=ttft_s) if one.name == home else one for one in crowd], near=3)

    assert late(0.1 + Slack().late_s) == home
    assert late(0.1 + Slack().late_s * 1.1) != home


def test_nearness_decides_only_among_the_best():
    """Not who is down, failed, doubtful or stands by."""
    crowd = crew(2)
    home = pick(crowd, near=5)
    (other,) = (one.name for one in crowd if one.name != home)

    def worse(**how: bool) -> str | None:
        return pick([one._replace(**how) if one.name == home else one for one in crowd], near=5)

    assert worse(up=False) == worse(standby=True) == worse(doubtful=True) == worse(refused=True) == other
    assert pick(crowd, frozenset((str(home),)), near=5) == other


@pytest.mark.slow
def test_lines_are_the_same_in_every_process():
    """Gateways and restarts agree, whatever seed Python has for its hashes."""
    program = "from tests.guards.test_routing import crew, homes; print(homes(crew(3)))"
    others = {"PYTHONHASHSEED": "1", "PYTHONPATH": "."}
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=others)

    assert said.stdout.strip() == str(homes(crew(3)))


BUSY = st.lists(
    st.builds(
        Candidate, st.sampled_from("abcdef"), st.just(True), st.just(False), st.integers(0, 9), st.just(False),
        st.just(False), st.integers(0, 10**6), st.floats(0.01, 1000), st.none(), st.just(False),
        st.just(False),
    ),
    min_size=1, max_size=6, unique_by=lambda one: one.name,
)  # fmt: skip


@given(BUSY, st.integers(0, 1 << 64))
def test_no_replica_that_is_picked_has_much_more_than_its_share(candidates, near):
    """The bound of bounded loads: its share times the ratio, and the slack above."""
    slack = Slack()
    named = {one.name: one for one in candidates}

    one = named[str(pick(candidates, near=near))]

    share = sum(c.tokens for c in candidates) * one.weight / sum(c.weight for c in candidates)
    assert len(candidates) == 1 or one.tokens <= slack.ratio * share * (1 + 1e-9) + slack.tokens


@pytest.mark.parametrize("near", [None, 7])
def test_a_request_goes_home_where_that_is_as_good_as_the_others(near):
    """Whatever it is near to; elsewhere if home is not there, is worse, or has much more than its share."""
    three = [up("a"), up("b"), up("c")]
    elsewhere = pick(three, near=near)
    for home in "abc":
        assert pick(three, near=near, home=home) == home
        assert choose(three, near, home=home).name == home
    assert pick(three, near=near, home="gone") == elsewhere
    assert pick([up("a"), up("b")._replace(doubtful=True)], near=near, home="b") == "a"
    assert pick([up("a"), up("b", standby=True)], near=near, home="b") == "a"
    assert pick([up("a"), up("b"), down("c")], near=near, home="c") in "ab"
    assert pick([up("a"), up("b")._replace(tokens=10**6)], near=near, home="b", slack=Slack(1.25, 100)) == "a"
    assert pick([up("a")._replace(ttft_s=0.1), up("b")._replace(ttft_s=9.0)], near=near, home="b") == "a"
