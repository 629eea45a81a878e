"""Prices are exact, and what a lease is taken for covers whatever the tokens turn out to be."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.money import DOLLAR, MILLION, Price, Tokens, dollars, price, shown

COUNTS = st.integers(min_value=0, max_value=10_000_000)
PRICES = st.builds(Price, *[st.integers(min_value=0, max_value=100 * DOLLAR)] * 4)
TOKENS = st.builds(
    lambda cached, fresh, reasoning, said: Tokens(cached + fresh, reasoning + said, cached, reasoning), *[COUNTS] * 4
)


@given(PRICES, TOKENS)
def test_a_cost_is_the_exact_sum_rounded_up_once(prices, tokens):
    """Never below the exact sum, and less than a micro-dollar above it."""
    kinds = (tokens.input - tokens.cached, tokens.output - tokens.reasoning, tokens.cached, tokens.reasoning)
    exact = sum(Fraction(count * each, MILLION) for count, each in zip(kinds, prices, strict=True))

    assert 0 <= prices.of(tokens) - exact < 1


@given(PRICES, TOKENS)
def test_the_most_covers_whatever_they_turn_out_to_be(prices, tokens):
    """A hold made before anybody knows what is cached or reasoning is never below the charge."""
    assert prices.of(tokens) <= prices.most(tokens.input, tokens.output)


@given(PRICES, st.integers(min_value=0, max_value=1_000 * DOLLAR), COUNTS)
def test_money_pays_so_many_output_tokens_and_not_one_more(prices, money, input_tokens):
    """The answer is the largest number whose worst price is within the money."""
    paid = prices.output_for(money, input_tokens)

    if paid is None:
        assert prices.most(input_tokens, 1 << 60) <= money
    elif paid < 0:
        assert prices.most(input_tokens, 0) > money
    else:
        assert prices.most(input_tokens, paid) <= money < prices.most(input_tokens, paid + 1)


def test_input_that_is_not_quite_paid_is_not_paid():
    """2.1 micro-dollars of input are 3, also where all output would be free."""
    assert Price(150_000, 0, 150_000, 0).output_for(2, 14) == -1
    assert Price(150_000, 0, 150_000, 0).output_for(3, 14) is None


@given(st.lists(COUNTS, max_size=8), PRICES)
def test_holds_for_parts_cover_the_whole(parts, prices):
    """A stream's leases, each priced alone, are together no less than all of it priced at once."""
    assert sum(prices.most(0, part) for part in parts) >= prices.most(0, sum(parts))


def test_a_fraction_of_a_micro_dollar_counts():
    """0.075 dollars for a million tokens: a thousand of them are 75 micro-dollars, and one is charged as 1."""
    cached = price("0.15", "0.60", cached="0.075")

    assert cached == Price(150_000, 600_000, 75_000, 600_000)
    assert [cached.of(Tokens(input=n, cached=n)) for n in (0, 1, 13, 14, 1_000)] == [0, 1, 1, 2, 75]


def test_a_free_model_costs_nothing():
    """However much of it is used; and any number of its tokens is paid by no money at all."""
    free = price("0", "0")

    assert free.free
    assert not price("0", "0", reasoning="0.000001").free
    assert (free.of(Tokens(10**9, 10**9)), free.output_for(0, 10**9)) == (0, None)


@given(st.integers(min_value=0, max_value=10**15))
def test_an_amount_survives_being_shown(money):
    """What people read is exact."""
    assert dollars(shown(money).removeprefix("$")) == money


@pytest.mark.parametrize(
    ("money", "text"), [(0, "$0.00"), (12_500_000, "$12.50"), (75, "$0.000075"), (-1_100_000, "-$1.10")]
)
def test_amounts_are_shown_in_cents_at_least(money, text):
    """And with as many decimals more as they have."""
    assert shown(money) == text


@pytest.mark.parametrize("said", ["", "five", "-1", "1e-7", "0.0000001", "NaN", "Infinity", "1e99", "1000000001"])
def test_what_is_no_amount_is_refused(said):
    """By its own words, and never rounded."""
    with pytest.raises(ValueError, match="dollars"):
        dollars(said)
