"""Properties of the budget arithmetic, of the meter and of the windows."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.budget import UNLIMITED, Account, Limit, Meter, Unit, Verdict, Window
from guards.claim import Cover
from guards.money import DOLLAR, Price
from tests.ledgers import tokens

TOKENS = st.integers(min_value=0, max_value=1_000)
UNIX_S = st.floats(min_value=0, max_value=4_000_000_000)


@given(TOKENS, st.lists(st.tuples(TOKENS, TOKENS), max_size=30))
def test_held_spent_and_free_sum_to_the_limit(limit, requests):
    """After every hold and every settlement, held + spent + free is the limit and none is negative."""
    account, held = Account(limit), []
    for want, part in requests:
        taken = min(want, account.free)
        account = account.hold(taken)
        held.append((taken, min(part, taken)))
        assert account.held + account.spent + account.free == limit
    for taken, spent in held:
        account = account.settle(taken, spent)
        assert account.held + account.spent + account.free == limit
        assert min(account.held, account.spent, account.free) >= 0

    assert account.held == 0
    assert account.spent == sum(spent for _, spent in held)


@pytest.mark.parametrize("amount", [31, -21])
def test_nothing_is_held_that_is_not_free_nor_given_back_that_is_not_held(amount):
    """Either is a bug, and is stopped."""
    with pytest.raises(AssertionError):
        Account(limit=100, spent=50, held=20).hold(amount)


def test_a_lowered_limit_leaves_nothing_free():
    """An account above its limit has nothing free and nothing payable, not less than nothing."""
    account = Account(limit=100, spent=150, held=20)

    assert (account.free, account.payable) == (0, 0)


def test_payable_counts_nothing_as_held():
    """What one request could cost at most disregards the holds of others."""
    assert Account(limit=100, spent=30, held=60).payable == 70


@pytest.mark.parametrize(("leased", "spent"), [(10, 11), (21, 5), (10, -1)])
def test_a_settlement_beyond_its_lease_is_a_bug(leased, spent):
    """Charging more than was leased, or giving back more than is held, is stopped."""
    with pytest.raises(AssertionError):
        Account(limit=100, held=20).settle(leased, spent)


@given(TOKENS, st.lists(st.tuples(TOKENS, TOKENS), max_size=40))
def test_a_meter_never_counts_more_than_is_leased(leased, chunks):
    """Whatever is delivered and granted, what is spent is covered by the lease."""
    meter, counted = Meter(tokens(leased), 0), 0
    for count, grant in chunks:
        verdict = meter.spend(count)
        counted += count if verdict in (Verdict.GO, Verdict.TOP_UP) else 0
        assert meter.spent == counted <= meter.leased
        assert meter.room == meter.leased - meter.spent
        if meter.asking:
            meter.granted(tokens(meter.leased + grant) if grant else None)


def test_a_meter_asks_once_when_it_runs_low():
    """With `low_tokens` left the meter asks for a lease, and not again before the answer."""
    meter = Meter(tokens(100), 0, low_tokens=64)

    verdicts = [meter.spend(35), meter.spend(1), meter.spend(1)]
    meter.granted(tokens(356))

    assert verdicts == [Verdict.GO, Verdict.TOP_UP, Verdict.GO]
    assert meter.room == 319
    assert not meter.asking


def test_a_meter_waits_for_a_lease_and_cuts_without_one():
    """Tokens that are not covered wait for the answer, and are cut when there is none; what is left may still go."""
    meter = Meter(tokens(10), 0, low_tokens=0)

    before, _ = meter.spend(11), meter.granted(None)

    assert before is Verdict.WAIT
    assert meter.spend(11) is Verdict.CUT
    assert meter.spend(10) is Verdict.GO
    assert meter.spent == 10


PRICE = Price(2 * DOLLAR, 6 * DOLLAR, 2 * DOLLAR, 6 * DOLLAR)  # micro-dollars: 2 for a token of input, 6 of output


def test_what_was_held_for_too_long_a_prompt_covers_output():
    """As far as every limit allows: the tokens do, money at its prices, and a limit on output does not."""
    amounts = {Unit.TOKENS: 120, Unit.MONEY: 100 * 2 + 20 * 6, Unit.OUTPUT: 50}

    def leased(*units):
        meter = Meter(Cover(units, tuple(amounts[unit] for unit in units), PRICE), bound=100, low_tokens=0)
        before = meter.leased
        assert meter.prompt(10, last=True) is Verdict.GO
        return before, meter.leased

    assert leased(Unit.TOKENS) == (20, 110)
    assert leased(Unit.TOKENS, Unit.MONEY) == (20, 50)
    assert leased(Unit.TOKENS, Unit.OUTPUT) == (20, 50)


def test_prompts_are_bounded_together_until_all_are_known():
    """What one of two needs less may be what the other one needs."""
    meter = Meter(tokens(120), bound=100, low_tokens=0)

    assert meter.prompt(10, last=False) is Verdict.GO
    assert (meter.input, meter.leased) == (10, 20)
    assert meter.prompt(60, last=True) is Verdict.GO
    assert (meter.input, meter.leased) == (70, 50)


def test_a_prompt_beyond_its_bound_waits_for_a_lease_and_cuts_without_one():
    """It is held first, as is the answer that was delivered before it was known."""
    meter = Meter(tokens(30), bound=20, low_tokens=0)
    meter.prompt(5, last=False)
    meter.spend(4)

    assert meter.prompt(22, last=True) is Verdict.WAIT
    assert (meter.wanted, meter.least, meter.input) == (27, 4, 5)
    meter.granted(tokens(31))
    assert meter.prompt(22, last=True) is Verdict.TOP_UP
    assert (meter.input, meter.room) == (27, 0)

    meter.granted(None)
    assert meter.prompt(1, last=True) is Verdict.CUT
    assert meter.input == 27


def test_nothing_is_spent_while_a_prompt_waits_for_its_lease():
    """The lease that comes covers it, and perhaps less output than before."""
    meter = Meter(tokens(70), bound=10, low_tokens=0)
    meter.prompt(10, last=False)
    meter.spend(5)

    assert meter.prompt(100, last=True) is Verdict.WAIT
    assert (meter.room, meter.spend(50)) == (0, Verdict.WAIT)
    meter.granted(tokens(130))

    assert meter.prompt(100, last=True) is Verdict.GO
    assert (meter.leased, meter.spent, meter.room) == (20, 5, 15)


def test_a_lease_that_was_asked_for_before_a_prompt_came_to_wait_is_not_enough():
    """The room stays nothing, never less, and the prompt asks again."""
    meter = Meter(tokens(70), bound=10, low_tokens=60)
    assert meter.prompt(10, last=False) is Verdict.TOP_UP
    meter.spend(5)
    assert meter.prompt(100, last=True) is Verdict.WAIT

    meter.granted(tokens(80))

    assert (meter.leased, meter.spent, meter.room) == (5, 5, 0)
    assert meter.prompt(100, last=True) is Verdict.WAIT
    assert meter.asking


@given(
    st.lists(st.tuples(st.sampled_from(["prompt", "spend", "back", "grant"]), st.integers(0, 60)), max_size=40),
    st.integers(0, 60),
    st.integers(0, 40),
)
def test_whatever_comes_in_whatever_order_is_covered(steps, amount, bound):
    """Input and output together never exceed what was granted, and the room is never negative."""
    meter = Meter(tokens(amount), bound)
    prompts = [count for name, count in steps if name == "prompt"]
    for name, count in steps:
        if name == "prompt":
            meter.prompt(prompts.pop(0), last=not prompts)
        elif name == "spend":
            meter.spend(count)
        elif name == "back":
            meter.give_back(min(count, meter.spent))
        elif meter.asking:
            amount += count
            meter.granted(tokens(amount) if count else None)
        assert meter.input + meter.spent <= amount or meter.spent == 0
        assert meter.spent <= max(meter.leased, 0)


def test_a_top_up_must_bring_something():
    """One token more than there is, where no prompt waits."""
    meter = Meter(tokens(10), 0)

    assert meter.least == 11


@given(st.sampled_from([w for w in Window if w is not Window.TOTAL]), UNIX_S)
def test_a_window_ends_where_the_next_begins(window, unix_s):
    """The moment of the reset is in the next window, and the moment before it still in this one."""
    resets_s = window.resets_at(unix_s).timestamp()

    assert unix_s < resets_s
    assert window.id_at(resets_s - 0.001) == window.id_at(unix_s)
    assert window.id_at(resets_s) != window.id_at(unix_s)


def test_windows_are_named_after_utc_calendar_periods():
    """A window's name is the UTC moment cut to its length, and a total has one name for ever."""
    unix_s = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()

    names = [window.id_at(unix_s) for window in (Window.MINUTE, Window.HOUR, Window.DAY, Window.MONTH, Window.TOTAL)]

    assert names == ["2026-12-31T23:59", "2026-12-31T23", "2026-12-31", "2026-12", "total"]
    assert Window.MONTH.resets_at(unix_s) == datetime(2027, 1, 1, tzinfo=UTC)
    assert Window.TOTAL.resets_at(unix_s) is None


def test_a_limit_is_more_in_the_windows_it_was_topped_up_for():
    """All that was added to one counts, and never beyond what has no limit."""
    limit = Limit(100, Window.DAY, extra=(("2026-01-01", 5), ("2026-01-02", 7), ("2026-01-01", 1)))

    assert [limit.within(f"2026-01-0{day}") for day in (1, 2, 3)] == [106, 107, 100]
    assert Limit(UNLIMITED - 1, extra=(("total", 5),)).within("total") == UNLIMITED


@given(TOKENS, TOKENS, st.integers(-1_000, 1_000))
def test_a_correction_changes_what_is_spent_alone(spent, held, amount):
    """And gives back at most that."""
    account = Account(1_000, spent, held)
    if amount < -spent:
        with pytest.raises(AssertionError):
            account.correct(amount)
    else:
        assert account.correct(amount) == Account(1_000, spent + amount, held)
