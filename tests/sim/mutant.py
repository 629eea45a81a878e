"""A guard of the product, broken on purpose: its source with one piece replaced, in this process only."""

import importlib
import inspect
import textwrap
from typing import Any, NamedTuple

import pytest


class Mutant(NamedTuple):
    """What to break.

    where: "module:Class.function", or "module:function".
    old, new: a piece of its source, found there once, and what stands there instead.
    caught: what the invariant says that must catch it; a pattern.
    worlds: how many may pass before.
    near: begin here, since a world soon after it noticed once; where worlds have changed since, it only takes longer.
    """

    name: str
    where: str
    old: str
    new: str
    caught: str
    worlds: int = 2000
    near: int = 0

    @property
    def seeds(self) -> list[int]:
        """Of all the worlds that may pass, those that are near first."""
        return [*range(self.near, self.worlds), *range(self.near)]

    def put_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Break it. Raises AssertionError where the guard is not what it was when this was written."""
        name, _, path = self.where.partition(":")
        module = importlib.import_module(name)
        *owners, last = path.split(".")
        owner: Any = module
        for one in owners:
            owner = getattr(owner, one)
        whole = inspect.getattr_static(owner, last)
        function = whole.fget if isinstance(whole, property) else getattr(owner, last)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1, f"{self.old!r} is not in {self.where} any more:\n{source}"
        source = source[source.index("async def " if inspect.iscoroutinefunction(function) else "def ") :]
        made: dict[str, Any] = {}
        exec(compile(source.replace(self.old, self.new), f"<{self.name}>", "exec"), module.__dict__, made)
        broken = made[last]
        monkeypatch.setattr(owner, last, property(broken) if isinstance(whole, property) else broken)
