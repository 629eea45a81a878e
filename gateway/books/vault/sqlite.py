"""A vault in one SQLite file: for the gateways of one machine, each a process of its own.

Every exchange is on disk before it is answered. With less (`synchronous = NORMAL`) a power cut would take back grants
of gateways that may not be there after it to say what they spent. The price is one flush for an exchange; those of a
process that wait for the same moment share it.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from gateway.books.ledger.contract import Place
from gateway.books.vault import steps
from gateway.books.vault.account import Account, Tag, lasts_s
from gateway.books.vault.contract import Claim, Exchange, Gateway, Heard, Refusal, Standing, VaultDown

T = TypeVar("T")

BUSY_S_MAX = 0.5  # how long a transaction waits for those of other processes
BATCH_MAX = 64  # steps in one transaction
WAITING_MAX = 10_000  # steps that wait for their turn

FORMAT = 1
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS vault (one INTEGER PRIMARY KEY CHECK (one = 1), value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tags (tag TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS accounts (
    tag TEXT NOT NULL, scope TEXT NOT NULL, unit TEXT NOT NULL, window TEXT NOT NULL,
    value BLOB NOT NULL, until INTEGER, PRIMARY KEY (tag, scope, unit, window)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS past ON accounts (until) WHERE until IS NOT NULL;
PRAGMA user_version = {FORMAT};
COMMIT;
"""


class Waiting(NamedTuple):
    """A step that waits for its turn."""

    step: Callable[["SqliteShelf", int], Any]
    answer: asyncio.Future[Any]


class SqliteVault:
    """`Vault` in `<data>/vault.sqlite3`; for use from one event loop, by any number of processes of one machine.

    data: directory, made if missing. clock: unix seconds; called from another thread.
    commits: transactions of this process so far.
    """

    def __init__(self, data: Path, clock: Callable[[], float]) -> None:
        self.commits = 0
        self._path = data / "vault.sqlite3"
        self._clock = clock
        self._db: sqlite3.Connection | None = None
        self._shelf: SqliteShelf | None = None
        self._file = (0, 0)
        self._waiting: list[Waiting] = []
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    async def begin(self, *, again: bool = False) -> str:
        return await self._take(lambda shelf, now_ms: steps.begin(shelf, now_ms, again))

    async def exchange(self, tag: str, gateway: Gateway, claims: Sequence[Claim], known: bool) -> Exchange | Refusal:
        return await self._take(lambda shelf, now_ms: steps.exchange(shelf, tag, gateway, claims, known, now_ms))

    async def tags(self) -> list[str]:
        return await self._take(lambda shelf, now_ms: sorted(shelf.tags()))

    async def standings(self, tag: str) -> list[Standing]:
        return await self._take(lambda shelf, now_ms: steps.standings(shelf, tag, now_ms))

    async def heard(self, tag: str) -> list[Heard]:
        return await self._take(lambda shelf, now_ms: steps.heard(shelf, tag, now_ms))

    async def write_off(self, tag: str, name: str, unheard_s: float = 0.0) -> int | None:
        unheard_ms = round(unheard_s * 1000)
        return await self._take(lambda shelf, now_ms: steps.write_off(shelf, tag, name, unheard_ms, now_ms))

    async def close(self) -> None:
        self._closed = True
        if self._runner is not None:
            await self._runner
        self._let_go()

    async def _take(self, step: "Callable[[SqliteShelf, int], T]") -> T:
        """Put a step in the queue. A caller that is cancelled has still been heard."""
        if self._closed or len(self._waiting) >= WAITING_MAX:
            raise VaultDown("the vault is closed" if self._closed else "too many exchanges wait for the vault")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(step, answer))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            try:
                answers = await asyncio.to_thread(self._commit, [one.step for one in batch])
            except Exception as error:
                answers = [down(self._path, error)] * len(batch)
            for one, answer in zip(batch, answers, strict=True):
                if one.answer.done():
                    continue
                if isinstance(answer, Exception):
                    one.answer.set_exception(answer)
                else:
                    one.answer.set_result(answer)

    def _commit(self, batch: "list[Callable[[SqliteShelf, int], Any]]") -> list[Any]:
        """Take steps in one transaction, from a thread; a step's own ValueError is its answer."""
        try:
            shelf = self._opened()
            shelf.db.execute("BEGIN IMMEDIATE")
            now_ms = round(self._clock() * 1000)
            shelf.prune(now_ms)
            answers = [answered(step, shelf, now_ms) for step in batch]
            shelf.db.execute("COMMIT")
            self.commits += 1
            return answers
        except BaseException:
            self._let_go()
            raise

    def _opened(self) -> "SqliteShelf":
        """The file that is in the directory now: SQLite goes on writing to one that was removed."""
        if self._db is not None and self._shelf is not None:
            if file_of(self._path) == self._file:
                return self._shelf
            self._let_go()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Used by one thread at a time, but not always by the same one.
        self._db = sqlite3.connect(self._path, timeout=BUSY_S_MAX, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found > FORMAT:
            raise sqlite3.DatabaseError("made by a newer holdfast")
        if found < FORMAT:
            self._db.executescript(SCHEMA)
        self._shelf, self._file = SqliteShelf(self._db), file_of(self._path)
        return self._shelf

    def _let_go(self) -> None:
        if self._db is not None:
            self._db.close()  # rolls back what was not committed
        self._db = self._shelf = None


class SqliteShelf:
    """`Shelf` of tables, inside a transaction."""

    run = "file"  # whatever was answered is in it; after an older one was put in its place, it has to begin again

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def begun(self) -> steps.Begun | None:
        row = self.db.execute("SELECT value FROM vault").fetchone()
        return msgspec.json.decode(row[0], type=steps.Begun) if row else None

    def put_begun(self, begun: steps.Begun) -> None:
        self.db.execute("INSERT OR REPLACE INTO vault VALUES (1, ?)", (msgspec.json.encode(begun),))

    def tags(self) -> list[str]:
        return [tag for (tag,) in self.db.execute("SELECT tag FROM tags")]

    def tag(self, tag: str) -> Tag | None:
        row = self.db.execute("SELECT value FROM tags WHERE tag = ?", (tag,)).fetchone()
        return msgspec.json.decode(row[0], type=Tag) if row else None

    def put_tag(self, tag: str, value: Tag) -> None:
        self.db.execute("INSERT OR REPLACE INTO tags VALUES (?, ?)", (tag, msgspec.json.encode(value)))

    def accounts(self, tag: str) -> Iterable[tuple[Place, Account]]:
        rows = self.db.execute("SELECT scope, unit, window, value FROM accounts WHERE tag = ?", (tag,)).fetchall()
        return [(Place(*at), msgspec.json.decode(value, type=Account)) for *at, value in rows]

    def account(self, tag: str, place: Place) -> Account | None:
        query = "SELECT value FROM accounts WHERE tag = ? AND scope = ? AND unit = ? AND window = ?"
        row = self.db.execute(query, (tag, *place)).fetchone()
        return msgspec.json.decode(row[0], type=Account) if row else None

    def put_account(self, tag: str, place: Place, value: Account, now_ms: int) -> None:
        lasts = lasts_s(place)
        row = (tag, *place, msgspec.json.encode(value), now_ms + lasts * 1000 if lasts else None)
        self.db.execute("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?)", row)

    def prune(self, now_ms: int) -> None:
        """Let go of accounts that nobody will ask for again."""
        self.db.execute("DELETE FROM accounts WHERE until <= ?", (now_ms,))


def answered(step: Callable[[SqliteShelf, int], Any], shelf: SqliteShelf, now_ms: int) -> Any:
    """A step's answer, or what it refuses its arguments with; it changes nothing then."""
    try:
        return step(shelf, now_ms)
    except ValueError as error:
        return error


def file_of(path: Path) -> tuple[int, int]:
    """Which file it is, whatever its name. Raises FileNotFoundError."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def down(path: Path, error: Exception) -> VaultDown:
    """Why a step could not be taken."""
    return VaultDown(f"the vault {path} cannot be used: {error}")
