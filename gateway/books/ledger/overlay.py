"""What a batch of steps changes, decided in memory and written in one go."""

from collections.abc import Iterable

import msgspec

from gateway.books.ledger.steps import Held
from gateway.books.ledger.tables import Tables
from guards.budget import Account

Place = tuple[str, str]  # key id, window

ACCOUNTS_MAX = 4096  # that are remembered from batch to batch


class Overlay:
    """`Shelf` of the one process that writes the tables.

    After each step `keep` or `undo`, after all steps of a batch `changes` are to be written, and after that `ended`.
    Holds are remembered here alone, as many as requests are running; of the accounts, those used last.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._live: dict[str, Held] = {}
        self._accounts: dict[Place, Account | None] = {}  # as committed
        self._changed: dict[Place, Account] = {}  # in this batch
        self._holds: dict[str, Held | None] = {}  # changed in this batch; None where dropped
        self._step_accounts: dict[Place, Account] = {}
        self._step_holds: dict[str, Held | None] = {}

    def account(self, key_id: str, window: str) -> Account | None:
        place = key_id, window
        for accounts in (self._step_accounts, self._changed):
            if place in accounts:
                return accounts[place]
        if place not in self._accounts:
            if len(self._accounts) >= ACCOUNTS_MAX:
                self._accounts.clear()
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
        found = {(key_id, window): account for key_id, window, account in self._tables.accounts()}
        return [(*place, account) for place, account in (found | self._changed | self._step_accounts).items()]

    def holds(self) -> Iterable[tuple[str, Held]]:
        found: dict[str, Held | None] = {**self._live, **self._holds, **self._step_holds}
        return [(request_id, held) for request_id, held in found.items() if held is not None]

    def keep(self) -> None:
        """A step was taken: what it changed counts."""
        self._changed |= self._step_accounts
        self._holds |= self._step_holds
        self.undo()

    def undo(self) -> None:
        """Forget what the present step has changed."""
        self._step_accounts.clear()
        self._step_holds.clear()

    def changes(self) -> str | None:
        """Say what the steps so far came to, as `tables.KEEP` takes it; None for nothing.

        Raises OverflowError where SQLite would make a float of a number.
        """
        if not self._changed:
            return None
        if any(max(account) >= 1 << 63 for account in self._changed.values()):
            raise OverflowError("an account is too large for 64 bits")
        return msgspec.json.encode([(*place, *account) for place, account in self._changed.items()]).decode()

    def ended(self, *, committed: bool) -> None:
        """What the batch changed is so from now on, or never was."""
        if committed:
            self._accounts |= self._changed
            for name, held in self._holds.items():
                if held is None:
                    self._live.pop(name, None)
                else:
                    self._live[name] = held
        self._changed.clear()
        self._holds.clear()
        self.undo()
