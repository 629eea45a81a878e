"""A lease never exceeds what is free, shrinks with it, and leaves nothing that nobody can use."""

from hypothesis import given as holds
from hypothesis import strategies as st

from guards.escrow import AMOUNT_MAX, given

AMOUNTS = st.integers(0, 10_000) | st.integers(0, AMOUNT_MAX)
GATEWAYS = st.integers(1, 256)


@holds(AMOUNTS | st.integers(-AMOUNT_MAX, -1), GATEWAYS, AMOUNTS, AMOUNTS)
def test_a_lease_is_within_what_is_free_and_all_that_is_needed_or_nothing(free, gateways, want, need):
    """Whatever is asked for by however many."""
    lease = given(free, gateways, want, need)

    assert 0 <= lease <= max(free, 0)
    assert lease == 0 if need > free else need <= lease <= max(need, want)


@holds(AMOUNTS, GATEWAYS, AMOUNTS)
def test_what_is_wanted_beyond_need_leaves_as_much_to_each_of_the_others(free, gateways, want):
    """Half of what is free is shared out evenly, so that whoever asks last in a round has at least as much left."""
    lease = given(free, gateways, want, 0)

    assert lease * 2 * gateways <= free
    assert lease == want or (lease + 1) * 2 * gateways > free


@holds(
    st.integers(1_000, 10**9),
    st.lists(st.tuples(st.integers(1, 64), st.integers(0, 10**6)), min_size=1, max_size=16),
    st.randoms(use_true_random=False),
)
def test_of_a_budget_that_is_asked_for_beyond_its_end_hardly_anything_is_left(budget, demands, random):
    """Each gateway spends what it is given and asks again, in any order, until none is given anything."""
    needs = {at: min(need, budget // 100) for at, (need, _) in enumerate(demands)}
    free, asking, leases = budget, set(needs), 0
    while asking:
        at = random.choice(sorted(asking))
        lease = given(free, len(needs), max(demands[at][1], budget // 50), needs[at])
        leases += 1
        free -= lease
        if not lease:
            asking.discard(at)

    assert free <= budget // 100
    assert leases < 10_000


def test_a_lease_shrinks_near_the_end():
    """Of a thousand, four gateways are given an eighth each time; of what is left at the end, what they need."""
    assert given(1_000, 4, 500, 0) == 125
    assert given(80, 4, 500, 0) == 10
    assert given(80, 4, 500, 30) == 30
    assert given(7, 4, 500, 7) == 7
    assert given(7, 4, 500, 8) == 0
