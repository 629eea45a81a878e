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


def wrap_class_method(owner: type, name: str, around: Callable[..., Any]) -> None:
    """The same of a class method: it is `around(original, ...)`, without the class."""
    original = getattr(owner, name)
    if getattr(original, WRAPPED, False):
        return

    @functools.wraps(original)
    def wrapped(cls: type, *args: Any, **kw: Any) -> Any:
        return around(original.__func__.__get__(cls), *args, **kw)

    setattr(wrapped, WRAPPED, True)
    setattr(owner, name, classmethod(wrapped))


def wrap_own(owner: object, name: str, around: Callable[..., Any]) -> None:
    """The same of one object's method, and of no other's."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kw: Any) -> Any:
        return around(original, *args, **kw)

    setattr(owner, name, wrapped)
