"""A breaker lets normal spending be, stops a runaway early, and tries again with little money."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guards.burn import (
    BUCKETS_PER_SHORT,
    CALM_WINDOWS,
    DAY,
    LEAVES_MAX,
    MONTH,
    PASS_SHARE,
    PAUSE_WINDOWS,
    Breaker,
    Burn,
    State,
    Tier,
)

DAY_S, MONTH_S = 86_400, 30 * 86_400
BUDGET = 10**9
PLANS = [(DAY_S, DAY), (MONTH_S, MONTH)]
ROUGH = 1.1  # a window is up to a bucket longer than it says


class Spender:
    """Spends by the clock, as a key would: each step what its rate earns, if the breaker lets it."""

    def __init__(self, period_s, tiers):
        self.period_s, self.tiers, self.breaker = period_s, tiers, Breaker(period_s, tiers)
        self.now_s, self.spent = 1_000.0, 0

    def look(self):
        return self.breaker.look(self.now_s, budget=BUDGET, left=BUDGET - self.spent)

    def spend(self, money, request=0, leaves=()):
        self.spent += money
        self.breaker.note(money, self.now_s, request=request, leaves=leaves)

    def burn(self, rate, for_s, step_s):
        """Spend at a rate until the breaker is no more what it was; answer the states that were seen."""
        seen = [self.look()]
        until_s = self.now_s + for_s
        while self.now_s < until_s and seen[-1] is not State.OPEN:
            self.now_s += step_s
            self.spend(int(rate * step_s / self.period_s * BUDGET))
            seen.append(self.look())
        return seen

    def rest(self, for_s):
        self.now_s += for_s
        return self.look()


@pytest.mark.parametrize(("period_s", "tiers"), PLANS, ids=["day", "month"])
@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.1, 1 / ROUGH))
def test_what_burns_below_every_alarm_never_trips(period_s, tiers, share):
    """However long it goes on."""
    spender = Spender(period_s, tiers)
    rate = share * min(tier.rate for tier in tiers)

    assert set(spender.burn(rate, 3 * tiers[1].long_s, tiers[0].short_s / 5)) == {State.CLOSED}


@pytest.mark.parametrize(("period_s", "tiers"), PLANS, ids=["day", "month"])
@settings(max_examples=20, deadline=None)
@given(rate=st.floats(30, 5_000))
def test_a_runaway_is_stopped_at_a_small_part_of_the_budget(period_s, tiers, rate):
    """Before a twentieth of it is spent, but for what one step takes; and what would be degraded was, on the way."""
    spender = Spender(period_s, tiers)
    step_s = 0.5

    states = spender.burn(rate, tiers[1].long_s, step_s)

    assert states[-1] is State.OPEN
    worst = max(tier.rate * tier.long_s / period_s for tier in tiers)
    assert spender.spent <= BUDGET * (worst + 2 * rate * step_s / period_s)


@pytest.mark.parametrize(("period_s", "tiers"), PLANS, ids=["day", "month"])
def test_a_slower_fire_degrades_and_does_not_open(period_s, tiers):
    """Between the two rates: shorter answers first, then a cheaper model too; until half the milder one is reached."""
    spender = Spender(period_s, tiers)
    grave, mild = tiers
    rate = (grave.rate / ROUGH + mild.rate) / 2

    states = spender.burn(rate, mild.long_s * 1.5, mild.short_s / 10)

    assert list(dict.fromkeys(states)) == [State.CLOSED, State.DEGRADED, State.CHEAPER]
    assert set(spender.burn(0.75 * mild.rate, 3 * mild.short_s, mild.short_s / 10)) == {State.CHEAPER}
    assert spender.burn(0.4 * mild.rate, 3 * mild.short_s, mild.short_s / 10)[-1] is State.CLOSED


def opened():
    spender = Spender(DAY_S, DAY)
    assert spender.burn(500, 600, 0.5)[-1] is State.OPEN
    return spender


def test_nothing_passes_an_open_breaker_until_its_time():
    """And clients are told when that is."""
    spender = opened()
    pause_s = PAUSE_WINDOWS * DAY[0].short_s

    assert spender.breaker.retry_after_s(spender.now_s) == pytest.approx(pause_s)
    assert spender.breaker.take(1) == 0
    assert spender.rest(pause_s * 0.9) is State.OPEN
    assert spender.rest(pause_s * 0.11) is State.HALF_OPEN


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 1)), max_size=30))
def test_a_pass_is_money_and_not_a_number_of_requests(holds):
    """Whatever is held and given back, no more than the pass is ever held or spent together."""
    spender = opened()
    spender.rest(PAUSE_WINDOWS * DAY[0].short_s + 1)
    allowance = int((BUDGET - spender.spent) * PASS_SHARE)
    used = 0
    for hold, part in holds:
        taken = spender.breaker.take(hold)
        assert taken <= hold
        unspent = int(taken * part)
        spender.breaker.give_back(unspent, spender.breaker.trial)
        used += taken - unspent
        assert used + spender.breaker.pass_left == allowance
        assert spender.breaker.pass_left >= 0

    spender.breaker.take(allowance)
    assert spender.breaker.take(1) == 0


def test_a_fire_that_is_out_is_let_go():
    """After the pause, and so long a calm in which a little was spent."""
    spender = opened()
    spender.rest(PAUSE_WINDOWS * DAY[0].short_s + 1)
    calm_s = CALM_WINDOWS * DAY[0].short_s
    little = int(DAY[0].rate / 4 * DAY[0].short_s / DAY_S * BUDGET)

    assert spender.breaker.take(little) == little
    spender.spend(little)
    assert spender.rest(calm_s * 0.9) is State.HALF_OPEN
    assert spender.rest(calm_s * 0.2) is State.CLOSED


def test_a_fire_that_goes_on_waits_twice_as_long():
    """Each time that the pass is burnt at once; once it was out, it begins with the first pause again."""
    spender = opened()
    pauses = []
    for _ in range(3):
        pauses.append(spender.breaker.retry_after_s(spender.now_s))
        assert spender.rest(pauses[-1] + 0.001) is State.HALF_OPEN
        spender.breaker.take(spender.breaker.pass_left)
        spender.spend(int(BUDGET * PASS_SHARE))
        assert spender.rest(1) is State.OPEN
        assert spender.breaker.take(1) == 0

    assert pauses == pytest.approx([pauses[0], 2 * pauses[0], 4 * pauses[0]])
    spender.rest(spender.breaker.retry_after_s(spender.now_s) + 0.001)
    assert spender.rest(CALM_WINDOWS * DAY[0].short_s + 1) is State.CLOSED
    spender.burn(500, 600, 0.5)
    assert spender.breaker.retry_after_s(spender.now_s) == pytest.approx(pauses[0])


def test_what_comes_back_late_is_not_passed_on():
    """A pass that is over is over, also when there is another one by then."""
    spender = opened()
    spender.rest(PAUSE_WINDOWS * DAY[0].short_s + 1)
    assert spender.breaker.take(1_000) == 1_000
    old = spender.breaker.trial
    spender.spend(int(BUDGET * PASS_SHARE))
    assert spender.look() is State.OPEN

    spender.breaker.give_back(1_000, old)
    assert spender.breaker.pass_left == 0
    assert spender.rest(spender.breaker.retry_after_s(spender.now_s)) is State.HALF_OPEN
    left = spender.breaker.pass_left
    spender.breaker.give_back(1_000, old)
    assert spender.breaker.pass_left == left


def test_a_few_large_requests_are_no_fire():
    """Nor is little money, however fast: small budgets would trip over one request."""
    spender = Spender(DAY_S, DAY)
    spender.spend(int(BUDGET * 0.03), request=int(BUDGET * 0.03))
    spender.spend(int(BUDGET * 0.03), request=int(BUDGET * 0.03))
    assert spender.look() is State.CLOSED
    spender.spend(int(BUDGET * 0.031), request=int(BUDGET * 0.01))
    assert spender.look() is State.OPEN

    steep = Breaker(DAY_S, [Tier(1, 4.8, State.OPEN)])
    steep.note(int(BUDGET * 0.009), 0, request=0)
    assert steep.look(0, budget=BUDGET, left=BUDGET) is State.CLOSED
    steep.note(int(BUDGET * 0.002), 0, request=0)
    assert steep.look(0, budget=BUDGET, left=BUDGET) is State.OPEN


def test_a_large_request_is_remembered_for_as_long_as_its_money_burns():
    """And no longer."""
    spender = Spender(DAY_S, DAY)
    large = int(BUDGET * 0.04)
    spender.spend(large, request=large)
    spender.rest(3_000)
    spender.spend(int(BUDGET * 0.07))
    assert spender.look() is State.CLOSED
    spender.rest(8_000)
    spender.spend(int(BUDGET * 0.07))
    assert spender.look() is State.OPEN


def test_what_was_stopped_in_a_leaf_is_not_its_parents_fire():
    """Its money is forgotten where it was counted with others', and only that."""
    parent = Spender(DAY_S, DAY)
    parent.spend(int(BUDGET * 0.2), leaves=["key:a", "team:x"])
    parent.spend(int(BUDGET * 0.04), leaves=["key:b", "team:x"])

    parent.breaker.strike("key:a", parent.now_s)
    assert parent.look() is State.CLOSED

    parent.spend(int(BUDGET * 0.02), leaves=["key:b", "team:x"])
    assert parent.look() is State.OPEN


def test_a_leaf_is_blamed_for_most_of_a_fire():
    """In both windows, or nobody is; a team as well as the key in it."""
    parent = Spender(DAY_S, DAY)
    parent.spend(60, leaves=["key:a", "team:x"])
    parent.spend(40, leaves=["key:b", "team:y"])
    assert parent.breaker.blamed(parent.now_s) == ["key:a", "team:x"]

    parent.spend(30, leaves=["key:b", "team:y"])
    assert parent.breaker.blamed(parent.now_s) == ["key:b", "team:y"]
    parent.spend(10, leaves=["key:c", "team:z"])
    assert parent.breaker.blamed(parent.now_s) == []


def test_leaves_are_bounded():
    """Those that spent nothing lately go first, then the one known longest."""
    breaker = Breaker(DAY_S, DAY)
    for number in range(LEAVES_MAX):
        breaker.note(1, 0, request=1, leaves=[f"key:{number}"])
    breaker.note(1, 0, request=1, leaves=["key:new"])
    assert (len(breaker._leaves), "key:0" in breaker._leaves) == (LEAVES_MAX, False)

    breaker.note(1, 2 * breaker.kept_s, request=1, leaves=["key:late"])
    assert list(breaker._leaves) == ["key:late"]


def test_by_hand():
    """It opens at once; it closes, and what was spent before is forgotten."""
    spender = Spender(DAY_S, DAY)
    spender.breaker.trip(spender.now_s)
    assert spender.look() is State.OPEN

    spender.spend(BUDGET // 2)
    spender.breaker.reset()
    assert spender.look() is State.CLOSED


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 100)), max_size=60))
def test_a_window_has_what_was_spent_in_it_and_at_most_a_bucket_more(spent):
    """So a rate is never read too low, and a little too high at worst."""
    tier = Tier(180.0, 1.0, State.OPEN)
    burn, bucket_s = Burn(tier), tier.short_s / BUCKETS_PER_SHORT
    now_s, past = 500.0, []
    for after_s, money in spent:
        now_s += after_s
        burn.note(money, now_s)
        past.append((now_s, money))

    for found, window_s in ((burn.long, tier.long_s), (burn.short, tier.short_s)):
        assert sum(money for at_s, money in past if at_s >= now_s - window_s) <= found
        assert found <= sum(money for at_s, money in past if at_s >= now_s - window_s - bucket_s)


def test_what_is_kept_is_bounded_by_time():
    """However long and however much is spent; and nothing is left of it when that time is over."""
    burn = Burn(Tier(180.0, 1.0, State.OPEN))

    for second in range(10_000):
        burn.note(1, second)

    assert len(burn._spent) == 181
    assert 180 <= burn.long <= 181
    burn.pass_time(9_999 + 100)
    assert (80 <= burn.long <= 82, burn.short) == (True, 0)
    burn.pass_time(9_999 + 182)
    assert burn.long == 0
