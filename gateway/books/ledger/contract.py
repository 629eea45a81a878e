"""What a ledger promises, whichever engine keeps it."""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from guards.budget import UNLIMITED, Account, Limit, Line, Unit
from guards.claim import Cover, Load
from guards.money import Price, Tokens

About = Mapping[str, Any]  # JSON values
NOTHING: About = {}


class Place(NamedTuple):
    """The identity of an account: what a scope has of a unit in one window.

    With the window's name in it, nothing is ever reset.
    """

    scope: str
    unit: str
    window: str


class Cell:
    """Where an account stands in a process's memory: one for each place. account: None where nobody ever held of it."""

    __slots__ = ("__weakref__", "account", "place")

    def __init__(self, place: Place, account: Account | None) -> None:
        self.place, self.account = place, account

    def __repr__(self) -> str:
        return f"Cell({self.place}, {self.account})"


class Cells(Protocol):
    """Whoever has the accounts in memory."""

    def cell(self, place: Place) -> Cell:
        """Find the one of a place."""


class Lines(tuple[Line, ...]):
    """The limits of a request, which remember for a minute where their accounts are: they are the same for many.

    units: of each; telling: see `Cover`. amounts: of each, in the windows that `cells` answered last.
    tag: what their accounts are kept under where many gateways share them; see `guards.scope.tag`.
    scopes: whose request it is, the widest first, whether or not there are limits on them.
    known_to: which lease was told of them last, and of which accounts. bounds: see `LeasedOpen`.
    """

    tag = ""
    scopes: tuple[str, ...] = ()
    known_to: tuple[object, tuple[Cell, ...]] | None = None
    bounds: tuple[object, tuple[Cell, ...], tuple[int, ...]] | None = None

    units: tuple[Unit, ...]
    telling: tuple[int, ...] | None
    amounts: tuple[int, ...]
    _cells: tuple[Cell, ...]
    _of: Cells | None
    _minute: int

    def __new__(cls, lines: Iterable[Line] = ()) -> "Lines":
        made = super().__new__(cls, lines)
        made.units = tuple(limit.unit for _, limit in made)
        firsts = tuple(made.units.index(unit) for unit in dict.fromkeys(made.units))
        made.telling = None if len(firsts) == len(made) else firsts
        made._of, made._minute = None, -1
        return made

    @classmethod
    def of(cls, lines: Sequence[Line]) -> "Lines":
        """The same limits, as these if they are not yet."""
        return lines if isinstance(lines, Lines) else cls(lines)

    @classmethod
    def under(cls, lines: Sequence[Line], tag: str, scopes: tuple[str, ...]) -> "Lines":
        """The limits of a tenant."""
        found = cls(lines)
        found.tag, found.scopes = tag, scopes
        return found

    @property
    def limited(self) -> bool:
        """Whether any of them can refuse a request; the others only record."""
        return any(limit.amount != UNLIMITED for _, limit in self)

    def cells(self, of: Cells, now_s: float) -> tuple[Cell, ...]:
        """The accounts they mean at this moment (unix seconds). From one thread."""
        minute = int(now_s // 60)  # no window is shorter
        if minute != self._minute or of is not self._of:
            self._cells = tuple(of.cell(place(scope, limit, now_s)) for scope, limit in self)
            self.amounts = tuple(
                limit.within(cell.place.window) for (_, limit), cell in zip(self, self._cells, strict=True)
            )
            self._minute, self._of = minute, of
        return self._cells


def place(scope: str, limit: Limit, now_s: float) -> Place:
    """Say which account a limit means at this moment."""
    return Place(scope, limit.unit, limit.window.id_at(now_s))


class Grant(NamedTuple):
    """A hold that is committed.

    cells: the accounts that it is charged to, also when it is settled in a later window; for their names alone.
    cover: what is held for the request, of each of its limits.
    leased: output tokens that may be delivered under it, after all the input it was asked for.
    payable: output tokens that the limits could pay at most, were every other hold given back unused; or the least
        that was asked for, where that was more than what was wanted.
    """

    cells: tuple[Cell, ...]
    cover: Cover
    leased: int
    payable: int

    @property
    def places(self) -> tuple[Place, ...]:
        """The accounts' names."""
        return tuple([cell.place for cell in self.cells])


class More(NamedTuple):
    """The answer to a top-up. cover: what is held now; None where there was not enough free, and nothing has changed.

    of_others: then, what other requests hold and may give back; 0 where waiting cannot help.
    """

    cover: Cover | None
    of_others: int = 0


class Charged(NamedTuple):
    """What was charged, to which accounts, for what. request_id: or «recovery-…», for a process that died."""

    request_id: str
    charges: list[tuple[Place, int]]
    used: Tokens = Tokens()
    about: About = NOTHING
    cost: int | None = None  # micro-dollars; of a model that has a price


class Correction(NamedTuple):
    """What accounts are charged beside all requests: below 0 it is given back, None is all that is spent.

    about: why, as the journal says it.
    """

    charges: list[tuple[Place, int | None]]
    about: About = NOTHING


class Ledger(Protocol):
    """The accounts of all limits and the holds on them; used from one event loop.

    Every call is one atomic step over all accounts of a request, taken in the order of the calls (but for one that has
    to wait for rights from a vault), and on its way when the call returns: a caller that is cancelled while it waits
    for the answer has still been heard. Each may be answered with `Refused(Reason.BOOKS)`; then nothing has changed.
    After every step, in each account:

        held + spent + free = limit,    held = the sum of its holds

    A limit that is passed in wins over the one of earlier calls. An account whose limit was lowered
    below what it has spent and held has nothing free; it takes nothing back.
    """

    def open(
        self,
        request_id: str,
        lines: Sequence[Line],
        price: Price | None,
        want: Load,
        least: Load,
        alone: Load | None = None,
    ) -> Awaitable[Grant]:
        """Hold what a request may use, of all its limits or of none. To be awaited, once.

        It holds the input it wants and as much of the output as is free, but only if all limits have `least` free;
        that may be more than what is wanted.
        alone: what is enough where nobody else holds of a limit that has not `least` free, so that no more will come.
        lines: at least one, none twice; price: of the model, needed where one of them is in money.

        Raises Refused: BUDGET when a limit could not pay `least` even if all other holds were given back,
        HELD when it could be then; both name the limit. ValueError when the request already holds. A caller that is
        cancelled before it has the grant owns none: the ledger gives the hold back.
        """

    def extend(self, request_id: str, want: Load, least: int) -> asyncio.Future[More]:
        """Have a hold cover a load instead of what it covers now: its input, and as much of its output as can be.

        least: output tokens; where not so many can be held, nothing changes. Nor does it for an unknown request.
        """

    def settle(self, request_id: str, used: Tokens, about: About = NOTHING) -> asyncio.Future[Charged | None]:
        """Give a hold back and charge what was used of it, once; None when there is no such hold (any more).

        about: what the journal is to say of the request, should it hear of the charge from the ledger alone.
        Raises AssertionError when more was used than is covered; then the hold stays as it was.
        """

    def relimit(self, line: Line) -> asyncio.Future[bool]:
        """Have a limit hold for running requests too, in the present window; False where nobody ever held of it."""

    def correct(self, name: str, corrections: "Sequence[Correction]") -> "asyncio.Future[list[Charged] | None]":
        """Charge accounts, or give them back, beside all requests: once for a name; None where that was before.

        What is given back is at most what was spent; accounts that do not exist are passed over. What was done is the
        answer, and the journal has to be told of it. Holds stay as they are.
        Raises OtherOrder where the name is that of another correction.
        """

    def balance(self, scope: str, limit: Limit) -> Awaitable[Account]:
        """Tell how a scope's limit stands in the current window."""

    def audit(self) -> Awaitable[list[str]]:
        """Name every account and hold that breaks an invariant; an account over a lowered limit is among them."""

    async def close(self) -> None:
        """Finish the steps that are on their way, then take no more."""
