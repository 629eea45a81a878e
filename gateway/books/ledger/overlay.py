"""What a batch of steps changes, decided in memory and written in one go."""

from collections.abc import Iterable, Iterator
from itertools import chain
from weakref import WeakValueDictionary

import msgspec

from gateway.books.ledger.contract import Cell, Charged, Place
from gateway.books.ledger.steps import Held
from gateway.books.ledger.tables import Tables
from guards.budget import Account

CELLS_MAX = 4096  # that are remembered although nobody has them


class Overlay:
    """`Shelf` of the one process that writes the tables.

    After each step `keep` or `undo`, after all steps of a batch `changes` are to be written, and after that `ended`.
    Holds are remembered here alone, as many as requests are running; of the accounts, those used last. A place has one
    cell at most, for as long as anybody refers to it.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._holds: dict[str, Held] = {}
        self._cells: WeakValueDictionary[Place, Cell] = WeakValueDictionary()
        self._recent: dict[Place, Cell] = {}
        self._told: list[Charged] = []
        self._corrected: dict[str, str] = {}  # digests by name, in this batch
        self._corrections = tables.corrections()  # before it
        # What was before, oldest first, of this batch; and where in it the present step began.
        self._accounts_before: list[tuple[tuple[Cell, ...], list[Account | None]]] = []
        self._holds_before: list[tuple[str, Held | None]] = []
        self._step = (0, 0)

    def cell(self, place: Place) -> Cell:
        cell = self._recent.get(place)
        if cell is None:
            cell = self._cells.get(place)
            if cell is None:
                cell = self._cells[place] = Cell(place, self._tables.account(place))
            if len(self._recent) >= CELLS_MAX:
                self._recent.clear()
            self._recent[place] = cell
        return cell

    def write(self, cell: Cell, account: Account) -> None:
        self._accounts_before.append(((cell,), [cell.account]))
        cell.account = account

    def write_all(self, cells: tuple[Cell, ...], accounts: Iterable[Account]) -> None:
        self._accounts_before.append((cells, [cell.account for cell in cells]))
        for cell, account in zip(cells, accounts, strict=True):
            cell.account = account

    def hold(self, request_id: str) -> Held | None:
        return self._holds.get(request_id)

    def keep_hold(self, request_id: str, held: Held) -> None:
        self._holds_before.append((request_id, self._holds.get(request_id)))
        self._holds[request_id] = held

    def drop_hold(self, request_id: str) -> None:
        self._holds_before.append((request_id, self._holds.pop(request_id)))

    def tell(self, charged: Charged) -> None:
        self._told.append(charged)  # the last thing that a step does: it is never undone alone

    def corrected(self, name: str) -> str | None:
        return self._corrected.get(name) or self._tables.corrected(name)

    def keep_corrected(self, name: str, digest: str) -> None:
        self._corrected[name] = digest

    def corrections(self) -> int:
        return self._corrections + len(self._corrected)

    def accounts(self) -> Iterable[tuple[Place, Account]]:
        changed = {cell.place: cell.account for cell in self._changed() if cell.account is not None}
        return (dict(self._tables.accounts()) | changed).items()

    def holds(self) -> Iterable[tuple[str, Held]]:
        return self._holds.items()

    def keep(self) -> None:
        """A step was taken: what it changed counts."""
        self._step = len(self._accounts_before), len(self._holds_before)

    def undo(self) -> None:
        """Forget what the present step has changed."""
        accounts, holds = self._step
        while len(self._accounts_before) > accounts:
            cells, before = self._accounts_before.pop()
            for cell, account in zip(cells, before, strict=True):
                cell.account = account
        while len(self._holds_before) > holds:
            request_id, held = self._holds_before.pop()
            if held is None:
                del self._holds[request_id]
            else:
                self._holds[request_id] = held

    def changes(self) -> tuple[str, str | None, str | None] | None:
        """Say what the steps so far came to, accounts, charges and corrections as `tables.BATCH` takes them.

        None for nothing.

        Raises OverflowError where SQLite would make a float of a number.
        """
        if not (self._accounts_before or self._corrected):
            return None
        rows = [(*cell.place, *cell.account) for cell in self._changed() if cell.account]
        if any(max(row[3:]) >= 1 << 63 for row in rows):
            raise OverflowError("an account is too large for 64 bits")
        accounts = msgspec.json.encode(rows).decode()
        orders = list(self._corrected.items())
        told, corrected = (msgspec.json.encode(one).decode() if one else None for one in (self._told, orders))
        return accounts, told, corrected

    def _changed(self) -> Iterator[Cell]:
        """Each once, in the order of the steps. Most requests change the same ones, so those are looked at together."""
        together = dict.fromkeys(cells for cells, _ in self._accounts_before)
        return iter(dict.fromkeys(chain.from_iterable(together)))

    def ended(self, *, committed: bool) -> None:
        """What the batch changed is so from now on, or never was."""
        self._step = 0, 0
        if committed:
            self._corrections += len(self._corrected)
        else:
            self.undo()
        self._accounts_before.clear()
        self._holds_before.clear()
        self._told.clear()
        self._corrected.clear()
