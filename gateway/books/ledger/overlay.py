"""What a batch of steps changes, decided in memory and written in one go.

A statement for every read and write of every step costs more than the commit that they share: each lets go of the
interpreter's lock, and waits to have it back. So only what a batch came to is written.
"""

from collections.abc import Iterable

from gateway.books.ledger.steps import Held
from gateway.books.ledger.tables import Tables
from guards.budget import Account

Place = tuple[str, str]  # key id, window


class Overlay:
    """`Shelf` over the tables of the one process that writes them.

    After each step `keep` or `undo`, after all steps of a batch `write`, and after its transaction `ended`.
    Holds are remembered from batch to batch, as many as requests are running; accounts are read anew.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._live = dict(tables.holds())
        self._accounts: dict[Place, Account | None] = {}  # read or changed in this batch
        self._changed: dict[Place, Account] = {}
        self._holds: dict[str, Held | None] = {}  # changed in this batch; None where dropped
        self._step_accounts: dict[Place, Account] = {}
        self._step_holds: dict[str, Held | None] = {}

    def account(self, key_id: str, window: str) -> Account | None:
        place = key_id, window
        if place in self._step_accounts:
            return self._step_accounts[place]
        if place not in self._accounts:
            self._accounts[place] = self._tables.account(key_id, window)
        return self._accounts[place]

    def keep_account(self, key_id: str, window: str, account: Account) -> None:
        self._step_accounts[key_id, window] = account

    def hold(self, request_id: str) -> Held | None:
        for holds in (self._step_holds, self._holds):
            if request_id in holds:
                return holds[request_id]
        return self._live.get(request_id)

    def keep_hold(self, request_id: str, held: Held) -> None:
        self._step_holds[request_id] = held

    def drop_hold(self, request_id: str) -> None:
        self._step_holds[request_id] = None

    def accounts(self) -> Iterable[tuple[str, str, Account]]:
        self.write()
        return self._tables.accounts()

    def holds(self) -> Iterable[tuple[str, Held]]:
        self.write()
        return self._tables.holds()

    def keep(self) -> None:
        """A step was taken: what it changed counts."""
        self._accounts |= self._step_accounts
        self._changed |= self._step_accounts
        self._holds |= self._step_holds
        self.undo()

    def undo(self) -> None:
        """Forget what the present step has changed."""
        self._step_accounts.clear()
        self._step_holds.clear()

    def write(self) -> None:
        """Write what the steps so far came to, within the transaction that the caller has begun."""
        self._tables.keep_accounts(self._changed)
        self._tables.keep_holds({name: held for name, held in self._holds.items() if held is not None})
        self._tables.drop_holds([name for name, held in self._holds.items() if held is None and name in self._live])

    def ended(self, *, committed: bool) -> None:
        """The transaction has ended: what it changed is so from now on, or never was."""
        if committed:
            for name, held in self._holds.items():
                if held is None:
                    self._live.pop(name, None)
                else:
                    self._live[name] = held
        for changes in (self._accounts, self._changed, self._holds):
            changes.clear()
        self.undo()
