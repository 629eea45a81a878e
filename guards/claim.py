"""What one request claims of every budget it is under: all of them, or none. Pure.

A request is under many limits at once: its org's, its team's, its user's, its key's, its session's; in tokens of one
kind or another, or in money. It claims a *load*, so many tokens of input and of output, and each limit sees its own
share of that in its own unit. Shares grow with the load, so what all limits together allow is what the tightest does.
"""

from collections.abc import Iterable
from typing import NamedTuple

from guards.budget import UNLIMITED, Account, Unit
from guards.money import Price, Tokens, shown

TOKENS, INPUT, OUTPUT, MONEY = Unit  # to look a member up in its class takes longer than what is done with it here
TOKENS_ALONE = (TOKENS,)


class Load(NamedTuple):
    """Tokens that a request may use."""

    input: int
    output: int


class Part(NamedTuple):
    """One limit of a request, and how its account stands. held: what the request itself has of it already."""

    unit: Unit
    account: Account
    held: int = 0

    @property
    def within_reach(self) -> int:
        """What the request could hold of it now."""
        return self.held + self.account.free

    @property
    def of_others(self) -> int:
        """What other requests hold of it, and may give back."""
        return self.account.held - self.held


class Cover(NamedTuple):
    """What is held for a request of each of its limits. price: of the model; None where no limit is in money.

    telling: which of them, by their places, say as much as all do: limits of one unit hold the same. None for all.
    """

    units: tuple[Unit, ...]
    amounts: tuple[int, ...]
    price: Price | None
    telling: tuple[int, ...] | None = None

    def beside(self, other: "Cover") -> "Cover":
        """What both cover."""
        count = len(self.units)
        mine = range(count) if self.telling is None else self.telling
        telling = (*mine, *range(count, count + len(other.units)))
        return Cover(self.units + other.units, self.amounts + other.amounts, self.price, telling)

    def output(self, input_tokens: int) -> int:
        """How many output tokens it covers, after so many of input; below 0 where not even those."""
        units, amounts, price, telling = self
        if units == TOKENS_ALONE:  # as most have
            return amounts[0] - input_tokens
        covered = UNLIMITED  # and the rest without a call for each: see `output_within`
        for at in range(len(units)) if telling is None else telling:
            unit, amount = units[at], amounts[at]
            if unit is TOKENS:
                within: int | None = amount - input_tokens
            elif unit is OUTPUT:
                within = amount
            else:
                within = output_within(unit, amount, input_tokens, price)
            if within is not None and within < covered:
                covered = within
        return covered


def shares(load: Load, price: Price | None) -> dict[Unit, int]:
    """What a limit of each unit must hold for a load, at most. price: of the model; without one, none is in money."""
    into, out = load
    found = {TOKENS: into + out, INPUT: into, OUTPUT: out}
    if price is not None:
        found[MONEY] = price.most(into, out)
    return found


def charges(used: Tokens, price: Price | None) -> dict[Unit, int]:
    """What a limit of each unit is charged for tokens that were used; within its share of a load that covers them."""
    into, out, _, _ = used
    found = {TOKENS: into + out, INPUT: into, OUTPUT: out}
    if price is not None:
        found[MONEY] = price.of(used)
    return found


def output_within(unit: Unit, amount: int, input_tokens: int, price: Price | None) -> int | None:
    """How many output tokens, after so many of input, an amount of a limit's unit covers.

    None for any number; below 0 where it does not cover the input.
    """
    if unit is TOKENS:
        return amount - input_tokens
    if unit is INPUT:
        return None if input_tokens <= amount else -1
    if unit is OUTPUT:
        return amount
    assert price is not None
    return price.output_for(amount, input_tokens)


def lease(parts: Iterable[Part], want: Load, price: Price | None, *, ever: bool = False) -> int:
    """How many output tokens all limits can let a request hold, up to what it wants; below 0 for not even the input.

    It is the most: of one token more, some limit could not hold its share.
    ever: that they could let it hold if every other request gave back what it holds.
    """
    output = want.output
    for part in parts:
        amount = part.account.payable if ever else part.within_reach
        within = output_within(part.unit, amount, want.input, price)
        if within is not None and within < output:
            output = within
    return output


def lacking(parts: Iterable[Part], least: Load, price: Price | None, *, ever: bool) -> int | None:
    """The first limit that cannot hold its share of a load, by its place; None where all can.

    ever: that could not even if every other request gave back what it holds.
    """
    needs = shares(least, price)
    for place, part in enumerate(parts):
        if needs[part.unit] > (part.account.payable if ever else part.within_reach):
            return place
    return None


def hoped_for(parts: Iterable[Part], least: Load, price: Price | None) -> int:
    """What others hold, and may give back, of the limit that lacks most hopelessly; 0 where waiting cannot help."""
    needs = shares(least, price)
    return min((part.of_others for part in parts if needs[part.unit] > part.within_reach), default=0)


def worded(unit: Unit, amount: int) -> str:
    """Say so much of a unit, for people."""
    return shown(amount) if unit is MONEY else f"{amount} {unit}"
