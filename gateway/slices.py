"""Long loops that let the event loop have its turn in between."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

SLICE = 256  # items that are looked at in one turn of the event loop


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """Give them one by one, and the event loop its turn in between."""
    for number, item in enumerate(items):
        if number % SLICE == SLICE - 1:
            await asyncio.sleep(0)
        yield item
