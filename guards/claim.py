"""What one request claims of every budget it is under: all of them, or none. Pure.

A request is under many limits at once: its org's, its team's, its user's, its key's, its session's; in tokens of one
kind or another, or in money. It claims a *load*, so many tokens of input and of output, and each limit sees its own
share of that in its own unit. Shares grow with the load, so what all limits together allow is what the tightest does.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from guards.budget import Account
from guards.money import Price, Tokens


class Unit(StrEnum):
    """What a limit counts."""

    TOKENS = "tokens"
    INPUT = "input tokens"
    OUTPUT = "output tokens"
    MONEY = "micro-dollars"


class Load(NamedTuple):
    """Tokens that a request may use."""

    input: int
    output: int


class Part(NamedTuple):
    """One limit, and how its account stands."""

    unit: Unit
    account: Account


def share(unit: Unit, load: Load, price: Price | None) -> int:
    """What a limit must hold for a load, at most, in its unit. price: of the model; only money needs one."""
    if unit is Unit.TOKENS:
        return load.input + load.output
    if unit is Unit.INPUT:
        return load.input
    if unit is Unit.OUTPUT:
        return load.output
    assert price is not None
    return price.most(load.input, load.output)


def charge(unit: Unit, used: Tokens, price: Price | None) -> int:
    """What a limit is charged for tokens that were used; never above their share of a load that covers them."""
    if unit is Unit.MONEY:
        assert price is not None
        return price.of(used)
    return share(unit, Load(used.input, used.output), price)


def output_within(unit: Unit, amount: int, input_tokens: int, price: Price | None) -> int | None:
    """How many output tokens, after so many of input, an amount of a limit's unit covers.

    None for any number; below 0 where it does not cover the input.
    """
    if unit is Unit.TOKENS:
        return amount - input_tokens
    if unit is Unit.INPUT:
        return None if input_tokens <= amount else -1
    if unit is Unit.OUTPUT:
        return amount
    assert price is not None
    return price.output_for(amount, input_tokens)


def lease(parts: Iterable[Part], want: Load, price: Price | None) -> int:
    """How many output tokens all limits have free at once for a request, up to what it wants; below 0 for no input.

    It is the most: of one token more, some limit could not hold its share.
    """
    output = want.output
    for unit, account in parts:
        within = output_within(unit, account.free, want.input, price)
        if within is not None and within < output:
            output = within
    return output


def lacking(parts: Iterable[Part], least: Load, price: Price | None, *, ever: bool) -> int | None:
    """The first limit that has not enough free for a load, by its place; None where all have.

    ever: that could not pay it even if every other request gave back what it holds.
    """
    for place, (unit, account) in enumerate(parts):
        if share(unit, least, price) > (account.payable if ever else account.free):
            return place
    return None
