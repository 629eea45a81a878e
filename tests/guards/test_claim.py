"""A claim is held by all limits or by none, takes the most that all allow, and covers whatever is charged."""

from hypothesis import given
from hypothesis import strategies as st

from guards.budget import Account
from guards.claim import Cover, Load, Part, Unit, charges, hoped_for, lacking, lease, output_within, shares
from guards.money import DOLLAR, Price, Tokens

COUNTS = st.integers(min_value=0, max_value=20_000)
PRICES = st.builds(Price, *[st.integers(min_value=0, max_value=20 * DOLLAR)] * 4)
UNITS = st.sampled_from(Unit)
LOADS = st.builds(Load, COUNTS, COUNTS)
ACCOUNTS = st.builds(lambda free, spent, held: Account(free + spent + held, spent, held), *[st.integers(0, 40_000)] * 3)
PARTS = st.lists(
    st.builds(lambda unit, account, held: Part(unit, account, min(held, account.held)), UNITS, ACCOUNTS, COUNTS),
    max_size=6,
)


@given(PARTS, LOADS, PRICES)
def test_a_lease_fits_every_limit_and_one_token_more_does_not(parts, want, price):
    """Nothing that is free is left to nobody, and nothing is held that is not free."""
    output = lease(parts, want, price)

    if output >= 0:
        leased = Load(want.input, output)
        assert all(shares(leased, price)[part.unit] <= part.within_reach for part in parts)
    if output < want.output:
        more = Load(want.input, max(output + 1, 0))
        assert any(shares(more, price)[part.unit] > part.within_reach for part in parts)


@given(PARTS, LOADS, PRICES, st.booleans())
def test_a_limit_that_lacks_is_named_and_only_then(parts, least, price, ever):
    """The first one, in the order of the limits."""
    place = lacking(parts, least, price, ever=ever)

    room = [part.account.payable if ever else part.held + part.account.free for part in parts]
    short = [shares(least, price)[part.unit] > most for part, most in zip(parts, room, strict=True)]
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

    assert charges(Tokens(input_tokens, output, cached, reasoning), price)[unit] <= shares(load, price)[unit]


@given(UNITS, LOADS, LOADS, PRICES)
def test_shares_grow_with_the_load(unit, one, other, price):
    """A top-up never lowers what is held, so what is held for each part covers the whole."""
    more = Load(one.input + other.input, one.output + other.output)

    assert (
        shares(one, price)[unit] <= shares(more, price)[unit] <= shares(one, price)[unit] + shares(other, price)[unit]
    )


@given(UNITS, st.integers(0, 40_000), COUNTS, PRICES)
def test_an_amount_covers_so_much_output_and_not_more(unit, amount, input_tokens, price):
    """The largest output whose share is within it."""
    output = output_within(unit, amount, input_tokens, price)

    if output is None:
        assert shares(Load(input_tokens, 1 << 50), price)[unit] <= amount
    elif output < 0:
        assert shares(Load(input_tokens, 0), price)[unit] > amount
    else:
        assert shares(Load(input_tokens, output), price)[unit] <= amount
        assert shares(Load(input_tokens, output + 1), price)[unit] > amount


@given(st.lists(st.tuples(UNITS, COUNTS), max_size=4), COUNTS, PRICES)
def test_a_cover_allows_the_most_output_whose_shares_are_within_it(held, input_tokens, price):
    """As a lease of accounts in which just so much is free would."""
    cover = Cover(tuple(unit for unit, _ in held), tuple(amount for _, amount in held), price)
    parts = [Part(unit, Account(amount)) for unit, amount in held]

    covered = cover.output(input_tokens)

    assert min(covered, 1 << 40) == lease(parts, Load(input_tokens, 1 << 40), price)


def test_others_are_worth_waiting_for_where_they_hold_what_lacks():
    """The least that is held of any limit that lacks; nothing where one lacks that nobody else holds of."""
    tokens = Part(Unit.TOKENS, Account(limit=100, spent=20, held=80), held=30)
    output = Part(Unit.OUTPUT, Account(limit=40, held=40), held=10)
    mine = Part(Unit.OUTPUT, Account(limit=40, held=40), held=40)

    assert hoped_for([tokens, output], Load(0, 31), None) == 30
    assert hoped_for([tokens, output], Load(15, 10), None) == 0
    assert hoped_for([tokens], Load(0, 31), None) == 50
    assert hoped_for([tokens, mine], Load(0, 41), None) == 0
    assert hoped_for([tokens, mine], Load(0, 30), None) == 0


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


@given(st.lists(UNITS, min_size=1, max_size=6), LOADS, PRICES, COUNTS)
def test_limits_of_one_unit_that_hold_the_same_need_one_of_them_be_looked_at(units, load, price, inputs):
    """What a few of them say is what all do; and what stands beside them is looked at whole."""
    needs = shares(load, price)
    all_of_them = Cover(tuple(units), tuple(needs[unit] for unit in units), price)
    firsts = tuple(units.index(unit) for unit in dict.fromkeys(units))
    few = all_of_them._replace(telling=firsts)
    more = Cover((Unit.OUTPUT,), (3,), None)

    assert few.output(inputs) == all_of_them.output(inputs)
    assert few.beside(more).output(inputs) == all_of_them.beside(more).output(inputs) == min(3, few.output(inputs))
