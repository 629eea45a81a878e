"""Who is let in, shortened, given a cheaper model, kept out and ended, while budgets burn."""

import asyncio
import json
from collections import Counter

import pytest

from gateway.books.ledger.memory import MemoryLedger
from gateway.books.tenants import tenant
from gateway.breakers import BREAKERS_MAX, LOOK_S, Breakers
from gateway.circuit import FREE
from gateway.stream.call import Bounds, Call, Endpoint
from guards.budget import UNLIMITED, Limit, Unit, Window
from guards.burn import DAY, OFF, PASS_SHARE, PAUSE_WINDOWS, Plan, State
from guards.claim import Load
from guards.money import Price, Tokens
from guards.refusal import Ending, Reason, Refused

PRICE = Price(1_000_000, 1_000_000, 1_000_000, 1_000_000)  # a micro-dollar a token
FREE_PRICE = Price(0, 0, 0, 0)
DAILY = Limit(1_000_000, Window.DAY, Unit.MONEY)
TOKENS = Limit(1_000_000, Window.DAY)
ON = {"": Plan()}
SHORT_S = DAY[0].short_s


class Spending:
    """Stands in for a hold: what a request has spent, of every unit alike."""

    def __init__(self):
        self.spent, self.longest = 0, UNLIMITED
        self.meter = self

    @property
    def input(self):
        return 0

    def charge(self, unit):
        return self.spent


class House:
    """Breakers whose clock is a test's; `ended` are the watches that had to end, `turns` what was told."""

    def __init__(self, cheaper=None, prices=None):
        self.now_s = 1_000.0
        self.ended, self.verdicts, self.turns = [], [], []
        self.ledger = MemoryLedger(lambda: 0.0)
        prices = {"big": PRICE, "small": PRICE, "free": FREE_PRICE} if prices is None else prices
        self.breakers = Breakers(
            self.ledger, self.end, self.turns.append, lambda: self.now_s, cheaper=cheaper or {}, prices=prices
        )

    def end(self, whose, verdict):
        self.ended += whose
        self.verdicts.append(verdict)
        return len(whose)

    def enter(self, who, model="big", **more):
        call = Call(Endpoint.CHAT, json.dumps({"model": model, "messages": [], **more}).encode(), "r", Bounds())
        return call, self.breakers.enter(call, who)

    def begin(self, who, model="big", **more):
        """A request that runs, and what it spends."""
        _, watch = self.enter(who, model, **more)
        spending = Spending()
        if watch.on_trial:
            watch.passes(Load(0, 10**9), PRICE)
        watch.over(spending).__enter__()
        return watch, spending

    def spend(self, who, money, model="big"):
        """A request that comes, spends and goes."""
        watch, spending = self.begin(who, model)
        spending.spent = money
        watch.__exit__(None, None, None)

    async def burn(self, who, money, requests=10, model="big"):
        """Spend so much by some requests, and look."""
        for _ in range(requests):
            self.spend(who, money // requests, model)
        await self.look()

    async def look(self, after_s=LOOK_S):
        self.now_s += after_s
        await self.breakers.look()

    def state(self, scope, model="big"):
        (found,) = [one.state for one in self.breakers.states() if (one.scope, one.model) == (scope, model)]
        return found

    def refused(self, who, model="big"):
        with pytest.raises(Refused) as caught:
            self.enter(who, model)
        assert caught.value.reason is Reason.BREAKER
        return caught.value


def key(name="a", org="acme", limits=None, plans=ON):
    limits = {"key:" + name: [DAILY]} if limits is None else limits
    return tenant(name, "alice", org, None, limits, plans=plans)


@pytest.fixture
def house():
    return House()


async def test_who_is_under_no_breaker_costs_nothing(house):
    """Neither without a plan, nor with one that is off, nor by a window that is over soon, nor for a free model."""
    hourly = {"key:a": [Limit(5, Window.HOUR, Unit.MONEY), Limit(5, Window.TOTAL), Limit(5, Window.MINUTE)]}
    for who in (key(plans={}), key(plans={"": OFF}), key(limits=hourly), key(plans=ON | {"key:a": OFF})):
        assert house.enter(who)[1] is FREE
    house.spend(key(), 900_000, "free")
    await house.look()

    assert house.breakers.states() == []


async def test_a_fire_opens_its_breaker_and_says_when_to_come_again(house):
    """Naming the scope, the model, the limit and how fast it burns; other models and other keys go on."""
    who = key()
    await house.burn(who, 60_000)
    refused = house.refused(who)

    pause_s = PAUSE_WINDOWS * SHORT_S
    assert refused.retry_after_s == pytest.approx(pause_s)
    assert "key:a, model 'big': $1.00 per day of key:a burns 69.1 times too fast; try again in 112 s" in refused.detail
    house.enter(who, "small")
    house.enter(key("b"))
    (turn,) = house.turns
    assert (turn.scope, turn.model, turn.before, turn.after) == ("key:a", "big", State.CLOSED, State.OPEN)


async def test_streams_that_run_burn_before_they_are_charged(house):
    """A hundred of them are ended at the next look after they spent too much; those of others go on."""
    who, other = key(), key("b")
    running = [house.begin(who) for _ in range(100)]
    innocent, spending = house.begin(other)
    await house.look()
    assert house.ended == []

    spending.spent = 700
    for _, one in running:
        one.spent = 700
    await house.look()

    assert Counter(house.ended) == Counter(watch for watch, _ in running)
    (verdict,) = house.verdicts
    assert verdict[0] is Ending.BREAKER
    assert "key:a" in verdict[1]
    assert house.turns[0].ended == 100
    innocent.__exit__(None, None, None)


async def test_what_ran_long_is_dated_when_it_was_spent(house):
    """A stream of an hour is no fire at its end, though its charge is."""
    who = key()
    running = [house.begin(who) for _ in range(10)]
    for _ in range(240):
        for _, spending in running:
            spending.spent += 35  # 2 times the rate that lasts the day
        await house.look(15.0)
    for watch, _ in running:
        watch.__exit__(None, None, None)
    await house.look()

    assert house.state("key:a") is State.CLOSED


async def test_who_waited_for_a_hold_while_it_opened_is_kept_out(house):
    """It was let in before, and never delivered anything."""
    who = key()
    _, watch = house.enter(who)
    await house.burn(who, 60_000)

    with pytest.raises(Refused) as caught:
        watch.over(Spending()).__enter__()

    assert caught.value.reason is Reason.BREAKER


async def test_a_milder_fire_makes_answers_shorter_and_then_a_cheaper_model_answers(house):
    """New ones at once, running ones at their next top-up; the client and the journal are told."""
    house = House(cheaper={"big": "small"})
    who = key()
    runs, spending = house.begin(who, n=2)
    await burn_at(house, who, 3.2, DAY[1].long_s)

    assert house.state("key:a") is State.DEGRADED
    _, watch = house.enter(who)
    assert watch.headers == (("x-holdfast-degraded", "max_tokens=1024"),)
    assert (watch.answer_tokens, watch.about) == (1024, {"degraded": ["shorter"], "degraded_by": "breaker"})
    assert spending.longest == 2 * 1024

    await burn_at(house, who, 3.2, DAY[1].short_s)
    assert house.state("key:a") is State.CHEAPER
    call, watch = house.enter(who)
    assert (call.model, call.body["model"]) == ("small", "small")
    assert watch.headers == (("x-holdfast-degraded", "model=small"),)
    assert watch.about == {
        "degraded": ["cheaper"], "degraded_by": "breaker", "asked_model": "big", "model": "small"
    }  # fmt: skip
    assert house.enter(who, "small")[1].about == {}
    runs.__exit__(None, None, None)


async def test_who_waited_for_a_hold_while_it_degraded_is_shortened(house):
    """As those are that run by then."""
    who = key()
    _, watch = house.enter(who)
    await burn_at(house, who, 3.2, DAY[1].long_s)

    spending = Spending()
    with watch.over(spending):
        assert spending.longest == 1024


async def test_a_model_without_a_cheaper_one_stays_with_short_answers(house):
    """And a cheaper one whose own breaker is open is kept out like any other."""
    who = key()
    await burn_at(house, who, 3.2, DAY[1].long_s + DAY[1].short_s)
    assert house.state("key:a") is State.CHEAPER
    call, watch = house.enter(who)
    assert (call.model, watch.answer_tokens) == ("big", 1024)

    house = House(cheaper={"big": "small"})
    await burn_at(house, who, 3.2, DAY[1].long_s + DAY[1].short_s)
    await house.burn(who, 60_000, model="small")
    assert "model 'small'" in house.refused(who).detail


async def burn_at(house, who, rate, for_s, step_s=20.0):
    """Spend steadily, by many small requests."""
    for _ in range(int(for_s / step_s)):
        for _ in range(4):
            house.spend(who, int(rate * step_s / 86_400 * DAILY.amount / 4))
        await house.look(step_s)


async def test_a_pass_is_shared_and_never_exceeded(house):
    """Half-open, all requests together hold no more than a part of what is left; what they leave comes back."""
    who = key()
    await house.burn(who, 60_000)
    await house.look(PAUSE_WINDOWS * SHORT_S)
    assert house.state("key:a") is State.HALF_OPEN
    whole = int(DAILY.amount * PASS_SHARE)  # nothing was charged in this ledger

    _, first = house.enter(who)
    assert first.on_trial
    assert first.passes(Load(1_000, 5_000), PRICE) == (Limit(6_000, unit=Unit.MONEY),)
    _, second = house.enter(who)
    assert second.passes(Load(0, 10**6), PRICE) == (Limit(whole - 6_000, unit=Unit.MONEY),)
    _, third = house.enter(who)
    with pytest.raises(Refused, match="breaker half-open: key:a"):
        third.passes(Load(1, 1), PRICE)

    second.give_back()
    spending = Spending()
    with first.over(spending):
        spending.spent = 100
    _, fourth = house.enter(who)
    assert fourth.passes(Load(0, 10**6), PRICE) == (Limit(whole - 100, unit=Unit.MONEY),)


async def test_who_waited_for_a_hold_until_it_was_half_open_has_no_pass(house):
    """It is told to come again, as those are who come now and find none left."""
    who = key()
    _, watch = house.enter(who)
    await house.burn(who, 60_000)
    await house.look(PAUSE_WINDOWS * SHORT_S)

    with pytest.raises(Refused, match="half-open"):
        watch.over(Spending()).__enter__()


async def test_a_pass_is_a_part_of_what_is_left_of_the_budget(house):
    """As the ledger says."""
    who = key()
    await house.ledger.open("x", who.lines, PRICE, Load(500_000, 1), Load(500_000, 1))
    await house.ledger.settle("x", Tokens(500_000))
    await house.burn(who, 60_000)
    await asyncio.sleep(0)
    await house.look(PAUSE_WINDOWS * SHORT_S)

    _, watch = house.enter(who)
    assert watch.passes(Load(0, 10**6), PRICE) == (Limit(5_000, unit=Unit.MONEY),)


async def test_it_closes_after_a_calm_and_opens_for_longer_where_there_is_none(house):
    """The pass that burns at once is a fire that goes on."""
    who = key()
    await house.burn(who, 60_000)
    await house.look(PAUSE_WINDOWS * SHORT_S)
    house.spend(who, int(DAILY.amount * PASS_SHARE))
    await house.look()
    assert house.refused(who).retry_after_s == pytest.approx(2 * PAUSE_WINDOWS * SHORT_S)

    await house.look(2 * PAUSE_WINDOWS * SHORT_S)
    await house.look(2 * SHORT_S)
    assert house.state("key:a") is State.CLOSED
    assert [turn.after for turn in house.turns] == [
        State.OPEN, State.HALF_OPEN, State.OPEN, State.HALF_OPEN, State.CLOSED
    ]  # fmt: skip


async def test_the_leaf_trips_and_its_org_does_not(house):
    """Its money is out of the org's fire, so that the other keys go on, now and while it is tried again."""
    limits = {"org:acme": [DAILY], "key:a": [DAILY], "key:b": [DAILY]}
    a, b = key("a", limits=limits), key("b", limits=limits)
    await house.burn(a, 60_000)

    house.refused(a)
    house.enter(b)
    assert house.state("org:acme") is State.CLOSED
    house.spend(b, 1_000)
    await house.look()
    house.enter(b)


async def test_a_key_without_limits_is_watched_by_its_orgs(house):
    """So that one line for an org is enough, and one key's fire is put out in that key."""
    limits = {"org:acme": [DAILY]}
    a, b = key("a", limits=limits), key("b", limits=limits)
    await house.burn(b, 2_000)
    await house.burn(a, 60_000)

    assert "key:a, model 'big': $1.00 per day of org:acme burns" in house.refused(a).detail
    house.enter(b)


async def test_a_leaf_that_is_most_of_its_orgs_fire_opens_instead(house):
    """Also where alone it burns below the rate."""
    limits = {"org:acme": [DAILY]}
    a, b = key("a", limits=limits), key("b", limits=limits)
    for _ in range(10):
        house.spend(a, 4_200)
        house.spend(b, 1_200)
    await house.look()

    assert "it is most of what burns of $1.00 per day of org:acme" in house.refused(a).detail
    house.enter(b)
    assert house.state("org:acme") is State.CLOSED


async def test_a_fire_of_many_opens_the_org_and_that_keeps_all_out(house):
    """A parent that is open overrides its children, also those that have spent nothing."""
    limits = {"org:acme": [DAILY]}
    for name in "abcdefgh":
        for _ in range(4):
            house.spend(key(name, limits=limits), 2_000)
    await house.look()

    assert house.state("org:acme") is State.OPEN
    assert "org:acme" in house.refused(key("z", limits=limits)).detail
    house.enter(key("y", org="other", limits=limits))


async def test_units_are_watched_apart(house):
    """Tokens of a key burn by their own limit."""
    limits = {"key:a": [DAILY, TOKENS]}
    await house.burn(key(limits=limits), 30_000)

    assert [(one.unit, one.state) for one in house.breakers.states()] == [
        (Unit.MONEY, State.CLOSED), (Unit.TOKENS, State.CLOSED)
    ]  # fmt: skip


async def test_by_hand(house):
    """It is opened, which ends what runs, and closed, which lets all in; of all models, or of one."""
    who = key()
    watch, _ = house.begin(who)
    house.enter(who, "small")
    assert house.breakers.trip("key:a", "big") == 1
    assert house.ended == [watch]
    assert "it was tripped by hand" in house.refused(who).detail
    house.enter(who, "small")

    assert house.breakers.reset("key:a") == 2
    house.enter(who)
    assert house.breakers.trip("key:nobody") == 0
    assert house.breakers.counts() == {"closed": 2, "degraded": 0, "cheaper": 0, "open": 0, "half-open": 0}
    await house.look()


async def test_breakers_are_bounded_and_idle_ones_forgotten(house):
    """Beyond the most, a limit goes unwatched; later there is room."""
    for number in range(BREAKERS_MAX):
        house.enter(key(f"k{number}"))
    assert len(house.breakers.states()) == BREAKERS_MAX

    busy = [house.begin(key(f"k{number}"))[0] for number in range(BREAKERS_MAX)]
    assert house.enter(key("late"))[1].circuits == ()
    for watch in busy:
        watch.__exit__(None, None, None)
    await house.look(4 * DAY[1].long_s)
    await house.look(4 * DAY[1].long_s)  # who was just let in is not idle
    assert house.breakers.states() == []
    assert len(house.enter(key("late"))[1].circuits) == 1


async def test_a_breaker_is_not_forgotten_while_a_hold_is_waited_for(house):
    """What came in by it is not to run in one that nobody knows."""
    _, watch = house.enter(key("k"))
    for _ in range(2):
        await house.look(4 * DAY[1].long_s)
    assert house.breakers.states() == []

    watch.over(Spending()).__enter__()

    assert [one.running for one in house.breakers.states()] == [1]
