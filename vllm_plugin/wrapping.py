"""Wrapping: a method of vLLM's is called through one of ours, once, however often that is asked for."""

import functools
from collections.abc import Callable
from typing import Any

WRAPPED = "_holdfast_wrapped"


def wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    """From now on `owner.name(...)` is `around(original, ...)`."""
    original = getattr(owner, name)
    if getattr(original, WRAPPED, False):
        return

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kw: Any) -> Any:
        return around(original, self, *args, **kw)

    setattr(wrapped, WRAPPED, True)
    setattr(owner, name, wrapped)
