"""Short words for a ledger's steps, where one limit in tokens is all that matters."""

import asyncio
from collections.abc import Awaitable

from gateway.books.ledger.contract import Grant, Ledger, More
from guards.budget import Limit, Line
from guards.claim import Cover, Load, Unit
from guards.money import Tokens


def take(ledger: Ledger, request_id: str, scope: str, limit: Limit, want: int, least: int = 1) -> Awaitable[Grant]:
    """Hold tokens of one limit."""
    return ledger.open(request_id, [Line(scope, limit)], None, Load(0, want), Load(0, least))


def extend(ledger: Ledger, request_id: str, tokens: int, least: int) -> asyncio.Future[More]:
    """Have a hold cover so many tokens in all."""
    return ledger.extend(request_id, Load(0, tokens), least)


def settle(ledger: Ledger, request_id: str, tokens: int) -> asyncio.Future[bool]:
    """Charge tokens."""
    return ledger.settle(request_id, Tokens(output=tokens))


def tokens(count: int) -> Cover:
    """A lease of one limit in tokens."""
    return Cover((Unit.TOKENS,), (count,), None)
