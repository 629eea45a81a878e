"""Money and prices, exact. Pure.

Money is counted in micro-dollars: a millionth of a dollar, always a whole number of them. Prices are what the market
quotes, dollars for a million tokens, and so micro-dollars for one token; since many are a fraction of that (0.075 for a
cached token), they are kept per million tokens, and a sum is rounded once, up.
"""

from decimal import Decimal, InvalidOperation
from typing import NamedTuple

DOLLAR = 1_000_000  # micro-dollars
MILLION = 1_000_000  # tokens that a price is for
DOLLARS_MAX = 1_000_000_000


class Tokens(NamedTuple):
    """What a request used, as OpenAI counts it: input has the cached tokens in it, output the reasoning."""

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0


class Price(NamedTuple):
    """Micro-dollars for a million tokens of each kind."""

    input: int
    output: int
    cached: int
    reasoning: int

    @property
    def free(self) -> bool:
        """Whether nothing is ever charged."""
        return not any(self)

    def of(self, tokens: Tokens) -> int:
        """What tokens cost, in micro-dollars, rounded up: half of one is not given away a million times."""
        into, out, cached, reasoning = tokens
        assert 0 <= cached <= into
        assert 0 <= reasoning <= out
        for_input, for_output, for_cached, for_reasoning = self
        exact = (
            (into - cached) * for_input
            + cached * for_cached
            + (out - reasoning) * for_output
            + reasoning * for_reasoning
        )
        return -(-exact // MILLION)

    def most(self, input_tokens: int, output_tokens: int) -> int:
        """What so many tokens cost at most, in micro-dollars, whatever turns out to be cached or reasoning."""
        into, out, cached, reasoning = self
        dear_input, dear_output = into if into > cached else cached, out if out > reasoning else reasoning
        return -(-(input_tokens * dear_input + output_tokens * dear_output) // MILLION)

    def output_for(self, money: int, input_tokens: int) -> int | None:
        """How many output tokens money surely pays, after so many of input: the most for which `most` is within it.

        None where it pays any number; -1 where it does not pay the input.
        """
        left = money * MILLION - input_tokens * max(self.input, self.cached)
        dearest = max(self.output, self.reasoning)
        if left < 0:
            return -1
        return left // dearest if dearest else None


def price(input: str, output: str, cached: str | None = None, reasoning: str | None = None) -> Price:
    """A price as it is quoted, in dollars for a million tokens. If unsaid, cached is as input and reasoning as output.

    Raises ValueError, see `dollars`.
    """
    return Price(
        dollars(input),
        dollars(output),
        dollars(input if cached is None else cached),
        dollars(output if reasoning is None else reasoning),
    )


def dollars(said: str) -> int:
    """An amount of dollars such as «12.50», in micro-dollars.

    Raises ValueError where it is none, is negative, above a billion, or finer than a micro-dollar: rounding is nobody's
    to guess.
    """
    try:
        amount = Decimal(said) * DOLLAR
    except InvalidOperation:
        raise ValueError(f"{said!r} is no amount of dollars; write it like 12.50") from None
    if not amount.is_finite() or not 0 <= amount <= DOLLARS_MAX * DOLLAR:
        raise ValueError(f"{said!r} is not between 0 and {DOLLARS_MAX} dollars")
    if amount != int(amount):
        raise ValueError(f"{said!r} has more than six decimals: amounts are whole micro-dollars")
    return int(amount)


def shown(money: int) -> str:
    """An amount of micro-dollars for people: cents at least, and no more than it has."""
    sign, whole, rest = "-" if money < 0 else "", *divmod(abs(money), DOLLAR)
    decimals = f"{rest:06d}".rstrip("0")
    return f"{sign}${whole}.{decimals:0<2}"
