"""A claim is held by all limits or by none, takes the most that all allow, and covers whatever is charged."""

from hypothesis import given
from hypothesis import strategies as st

from guards.budget import Account
from guards.claim import Load, Part, Unit, charge, lacking, lease, output_within, share
from guards.money import DOLLAR, Price, Tokens

COUNTS = st.integers(min_value=0, max_value=20_000)
PRICES = st.builds(Price, *[st.integers(min_value=0, max_value=20 * DOLLAR)] * 4)
UNITS = st.sampled_from(Unit)
LOADS = st.builds(Load, COUNTS, COUNTS)
ACCOUNTS = st.builds(lambda free, spent, held: Account(free + spent + held, spent, held), *[st.integers(0, 40_000)] * 3)
PARTS = st.lists(st.builds(Part, UNITS, ACCOUNTS), max_size=6)


@given(PARTS, LOADS, PRICES)
def test_a_lease_fits_every_limit_and_one_token_more_does_not(parts, want, price):
    """Nothing that is free is left to nobody, and nothing is held that is not free."""
    output = lease(parts, want, price)

    if output >= 0:
        leased = Load(want.input, output)
        assert all(share(unit, leased, price) <= account.free for unit, account in parts)
    if output < want.output:
        more = Load(want.input, max(output + 1, 0))
        assert any(share(unit, more, price) > account.free for unit, account in parts)


@given(PARTS, LOADS, PRICES, st.booleans())
def test_a_limit_that_lacks_is_named_and_only_then(parts, least, price, ever):
    """The first one, in the order of the limits."""
    place = lacking(parts, least, price, ever=ever)

    short = [share(unit, least, price) > (account.payable if ever else account.free) for unit, account in parts]
    assert place == (short.index(True) if True in short else None)


@given(PARTS, LOADS, PRICES)
def test_what_lacks_for_ever_lacks_now(parts, least, price):
    """Holds of others only make it less."""
    if lacking(parts, least, price, ever=True) is not None:
        assert lacking(parts, least, price, ever=False) is not None


@given(UNITS, LOADS, PRICES, st.data())
def test_a_share_covers_the_charge_for_whatever_was_used_of_it(unit, load, price, data):
    """However many tokens were delivered, cached, or reasoning."""
    output = data.draw(st.integers(0, load.output))
    input_tokens = data.draw(st.integers(0, load.input))
    cached = data.draw(st.integers(0, input_tokens))
    reasoning = data.draw(st.integers(0, output))

    assert charge(unit, Tokens(input_tokens, output, cached, reasoning), price) <= share(unit, load, price)


@given(UNITS, LOADS, LOADS, PRICES)
def test_shares_grow_with_the_load(unit, one, other, price):
    """A top-up never lowers what is held, so what is held for each part covers the whole."""
    more = Load(one.input + other.input, one.output + other.output)

    assert share(unit, one, price) <= share(unit, more, price) <= share(unit, one, price) + share(unit, other, price)


@given(UNITS, st.integers(0, 40_000), COUNTS, PRICES)
def test_an_amount_covers_so_much_output_and_not_more(unit, amount, input_tokens, price):
    """The largest output whose share is within it."""
    output = output_within(unit, amount, input_tokens, price)

    if output is None:
        assert share(unit, Load(input_tokens, 1 << 50), price) <= amount
    elif output < 0:
        assert share(unit, Load(input_tokens, 0), price) > amount
    else:
        assert share(unit, Load(input_tokens, output), price) <= amount
        assert share(unit, Load(input_tokens, output + 1), price) > amount


def test_the_tightest_limit_decides():
    """An org with money, a user with tokens, a session with few of output left: 30 tokens can be leased."""
    price = Price(DOLLAR, 2 * DOLLAR, DOLLAR, 2 * DOLLAR)  # a micro-dollar for a token of input, two for one of output
    parts = [
        Part(Unit.MONEY, Account(limit=1_000, spent=100, held=500)),
        Part(Unit.TOKENS, Account(limit=500, spent=350)),
        Part(Unit.OUTPUT, Account(limit=100, spent=70)),
    ]

    assert lease(parts, Load(100, 200), price) == 30
    assert lease(parts[:2], Load(100, 200), price) == 50
    assert lease(parts[:1], Load(100, 200), price) == 150
    assert lacking(parts, Load(100, 51), price, ever=False) == 1
    assert lacking(parts[1:], Load(0, 31), None, ever=True) == 1
