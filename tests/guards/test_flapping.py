"""Servers that go down again and again."""

from hypothesis import given
from hypothesis import strategies as st

from guards.flapping import Plan, Trust

PLAN = Plan(soon_s=60.0, wait_s=2.0, wait_s_max=16.0, quiet_s=300.0)


def flapped(times: int, up_for_s: float = 1.0) -> tuple[Trust, float, list[float]]:
    """A server that comes up and goes down so often: what is thought of it, when, and how long it waited each time."""
    trust, now_s, waits = Trust().up(0.0, PLAN), 0.0, []
    for _ in range(times):
        now_s = max(now_s, trust.from_s) + up_for_s
        trust = trust.down(now_s, PLAN).up(now_s, PLAN)
        waits.append(trust.from_s - now_s)
    return trust, now_s, waits


def test_the_first_time_costs_nothing_and_each_further_one_twice_as_much():
    """A server that was restarted is trusted at once; one that goes down again soon waits, up to a bound."""
    _, _, waits = flapped(7)

    assert waits == [0.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0]


def test_waiting_is_no_good_behaviour():
    """Up for longer than soon_s, but only because it was not sent anything: that is still soon."""
    trust = Trust(flaps=20, back=True).up(0.0, Plan(wait_s_max=120.0))

    assert trust.from_s == 120.0
    assert trust.down(130.0, PLAN).flaps == 21


def test_after_a_quiet_time_all_is_forgotten():
    """Long enough trusted and up, the next time it goes down is the first one."""
    trust, now_s, _ = flapped(5)
    quiet_s = trust.from_s + PLAN.quiet_s

    again = trust.down(quiet_s, PLAN).up(quiet_s, PLAN)

    assert trust.known(now_s, PLAN) == 4
    assert (trust.known(quiet_s, PLAN), again.flaps, again.waits(quiet_s)) == (0, 0, False)


def test_down_late_but_not_quiet_keeps_what_was_known():
    """Between soon and quiet it is neither worse nor better than before."""
    trust, _, _ = flapped(3)
    at_s = trust.from_s + PLAN.soon_s

    assert trust.down(at_s, PLAN).flaps == trust.flaps


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 500)), max_size=40))
def test_the_wait_is_bounded_and_only_of_servers_that_are_up(moves):
    """Whatever happens, also twice in a row, nobody waits longer than the bound, nor while it is down."""
    trust, now_s = Trust(), 0.0
    for up, after_s in moves:
        now_s += after_s
        trust = trust.up(now_s, PLAN) if up else trust.down(now_s, PLAN)
        assert trust.from_s <= now_s + PLAN.wait_s_max
        assert up or not trust.waits(now_s)
        assert trust.flaps <= len(moves)
