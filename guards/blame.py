"""Whose fault it is that servers fail a request: theirs, or the request's own. Pure.

A poison request makes any server answer 500. So a failure says nothing until the same request was sent to another
server, and then:

1. Another one brings a token beyond it, or the whole answer: the failure was not repeated. It counts against all that
   failed the request so far.
2. Another one fails it too, and nobody answers it: it is the request's. It counts against none, however many failed.
3. Nobody else was asked, since it could not go on elsewhere, or was not to be tried again: it counts against that one
   server. But not where the client left meanwhile, who could choose the moment, nor where no other server was up, or
   no retries were left (guards/retries.py).

What many poison requests can do. By 2, nothing: each costs `limits.legs` calls at most, of all servers together, and no
breaker counts one. Whoever finds a request that fails after its first token and cannot go on elsewhere, or that fails
at one server only, has its failures counted, by 3 and 1. A breaker (guards/breaker.py) opens when they are half of all
that the server answers for that model, so the attacker needs as many requests as everybody else has together; it is
open for `open_s`, and the first good answer closes it. A server whose breaker is open is asked when no other is left,
so with all of them open everything is as if none were.
"""

from typing import Generic, TypeVar

T = TypeVar("T")


class Blame(Generic[T]):
    """One request's failures; of each server any number of calls. Its size is bounded by the legs of the request."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: dict[str, list[T]] = {}

    @property
    def pending(self) -> bool:
        """Whether anything failed that nobody was found at fault for."""
        return bool(self._pending)

    def failed(self, server: str, call: T) -> None:
        """A server failed it."""
        self._pending.setdefault(server, []).append(call)

    def answered(self) -> list[T]:
        """A server has answered it, or goes on with it: give the calls that count as failed."""
        return self._settled()

    def over(self, *, unsure: bool) -> tuple[list[T], list[T]]:
        """It is over: give the calls that count as failed, and those that show nothing.

        unsure: no other server could be asked, or the client left.
        """
        own = unsure or len(self._pending) > 1
        calls = self._settled()
        return ([], calls) if own else (calls, [])

    def _settled(self) -> list[T]:
        if not self._pending:  # as it mostly is
            return []
        calls = [call for one in self._pending.values() for call in one]
        self._pending.clear()
        return calls
