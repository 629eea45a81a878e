"""Properties of the budget arithmetic, of the meter and of the windows."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.budget import Account, Meter, Verdict, Window

TOKENS = st.integers(min_value=0, max_value=1_000)
UNIX_S = st.floats(min_value=0, max_value=4_000_000_000)


@given(TOKENS, st.lists(st.tuples(TOKENS, TOKENS, TOKENS), max_size=30))
def test_held_spent_and_free_sum_to_the_limit(limit, requests):
    """After every hold and every settlement, held + spent + free is the limit and none is negative."""
    account, leases = Account(limit), []
    for want, least, part in requests:
        leased = account.lease(want, least)
        account = account.hold(leased)
        leases.append((leased, min(part, leased)))
        assert account.held + account.spent + account.free == limit
    for leased, spent in leases:
        account = account.settle(leased, spent)
        assert account.held + account.spent + account.free == limit
        assert min(account.held, account.spent, account.free) >= 0

    assert account.held == 0
    assert account.spent == sum(spent for _, spent in leases)


@given(TOKENS, TOKENS, TOKENS, TOKENS, st.integers(min_value=1, max_value=1_000))
def test_a_lease_is_what_is_wanted_or_free_or_nothing(limit, spent, held, want, least):
    """A lease is never above what is wanted or free, and is zero exactly when `least` are not free."""
    account = Account(limit, spent, held)

    leased = account.lease(want, least)

    assert leased == (min(want, account.free) if account.free >= least else 0)


def test_a_lowered_limit_leaves_nothing_free():
    """An account above its limit has nothing free and nothing payable, not less than nothing."""
    account = Account(limit=100, spent=150, held=20)

    assert (account.free, account.payable, account.lease(10)) == (0, 0, 0)


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
    meter, counted = Meter(leased), 0
    for tokens, grant in chunks:
        verdict = meter.spend(tokens)
        counted += tokens if verdict in (Verdict.GO, Verdict.TOP_UP) else 0
        assert meter.spent == counted <= meter.leased
        assert meter.room == meter.leased - meter.spent
        if meter.asking:
            meter.granted(grant)


def test_a_meter_asks_once_when_it_runs_low():
    """With `low_tokens` left the meter asks for a lease, and not again before the answer."""
    meter = Meter(leased=100, low_tokens=64)

    verdicts = [meter.spend(35), meter.spend(1), meter.spend(1)]
    meter.granted(256)

    assert verdicts == [Verdict.GO, Verdict.TOP_UP, Verdict.GO]
    assert meter.room == 319
    assert not meter.asking


def test_a_meter_waits_for_a_lease_and_cuts_without_one():
    """Tokens that are not covered wait for the answer, and are cut when it is zero; what is left may still go."""
    meter = Meter(leased=10, low_tokens=0)

    before, _ = meter.spend(11), meter.granted(0)

    assert before is Verdict.WAIT
    assert meter.spend(11) is Verdict.CUT
    assert meter.spend(10) is Verdict.GO
    assert meter.spent == 10


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
