"""API keys: who a secret stands for. Stored hashed, looked up in memory, revoked within one request.

A secret is 256 random bits, so plain SHA-256 is enough at rest: slow hashes protect secrets that can be
guessed, and 2^256 cannot be, while 100 ms per request would be an attack of our own.
"""

import hmac
import math
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from gateway.config import DeclaredKey
from guards.budget import Limit, Window
from guards.refusal import Reason, Refused

SECRET_BYTES = 32
USER_CHARS_MAX = 256
BUSY_MS = 2000  # to write: another process commits a key in milliseconds; beyond this the books are stuck
LOOK_BUSY_MS = 5  # to look, which the event loop waits for
STALE_S_MAX = 30.0  # how long keys that were read are believed while another process keeps the file locked
SCHEMA = 1
_DUMMY = bytes(32)
_TABLES = """
CREATE TABLE IF NOT EXISTS keys (
    key_id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, user TEXT NOT NULL, org TEXT,
    tokens INTEGER, window TEXT, created_at REAL NOT NULL, revoked_at REAL
) STRICT;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays for a request. limit: None is unbounded. source: «open» while no key was ever made."""

    key_id: str
    user: str
    org: str | None = None
    limit: Limit | None = None
    source: Literal["store", "config", "open"] = "store"


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key for people to look at. Times in Unix seconds; created_at is None for declared keys."""

    tenant: Tenant
    created_at: float | None
    revoked_at: float | None


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    row: KeyRow


Rows = list[KeyRow]  # the method named `list` hides the type from its own class
OPEN = Tenant("open", "anonymous", source="open")


def key_id_of(digest: bytes) -> str:
    """Name a key by the start of its hash: short enough to say, and no help in finding the secret."""
    return "key_" + digest.hex()[:12]


class Keys:
    """The keys of one data directory and those declared in the configuration. Used from one thread.

    path: keys.db, made with its directory where missing, readable by its owner only.
    declared: keys of the configuration; one that is also in the store and revoked there is revoked.
    clock: Unix seconds.
    look_every_s: how old an answer to «did another process change them?» may be, in seconds; a key that is not
        known is looked for at once.
    Every method raises Refused(Reason.BOOKS) where keys.db cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        declared: tuple[DeclaredKey, ...] = (),
        clock: Callable[[], float] = time.time,
        look_every_s: float = 0.0,
    ) -> None:
        self._path = path
        self._clock, self._look_every_s = clock, look_every_s
        self._declared = [_declared_entry(key) for key in declared]
        self._version = -1
        self._looked_at = -math.inf  # Unix seconds
        self._entries: dict[str, list[_Entry]] = {}
        self._any_configured = bool(declared)
        try:
            self._db = _opened(path)
            if declared:
                self._db.execute("INSERT OR IGNORE INTO facts VALUES ('declared')")
            self._look()
            self._db.execute(f"PRAGMA busy_timeout = {LOOK_BUSY_MS}")
        except (sqlite3.Error, OSError, ValueError) as error:
            raise _unavailable(error, path) from None

    @property
    def any_configured(self) -> bool:
        """Whether a key was ever made or declared here, also if all are gone: a fleet never falls open again."""
        self._refresh()
        return self._any_configured

    def tenant(self, secret: str | None) -> Tenant:
        """Say who a secret stands for. Raises Refused(Reason.UNAUTHORIZED); its text never holds the secret.

        While no key was ever made or declared, everybody is OPEN, whatever they send.
        """
        self._refresh()
        if not self._any_configured:
            return OPEN
        if not secret:
            raise Refused(Reason.UNAUTHORIZED, "an API key is needed: send it as a bearer token")
        digest = sha256(secret.encode("utf-8", "surrogatepass")).digest()
        row = self._find(digest)
        if row is None and self._look_every_s:
            self._looked_at = -math.inf  # it may have been made just now
            self._refresh()
            row = self._find(digest)
        if row is None:
            raise Refused(Reason.UNAUTHORIZED, "unknown API key")
        if row.revoked_at is not None:
            raise Refused(Reason.UNAUTHORIZED, f"the API key {row.tenant.key_id} was revoked")
        return row.tenant

    def create(self, user: str, org: str | None = None, limit: Limit | None = None) -> tuple[str, Tenant]:
        """Make a key and return its secret, which is kept nowhere. Raises ValueError on unprintable names."""
        for name in (user, org):
            if name is not None and not (0 < len(name) <= USER_CHARS_MAX and name.isprintable()):
                raise ValueError(f"a user or org is 1 to {USER_CHARS_MAX} printable characters")
        secret = "hf-" + secrets.token_urlsafe(SECRET_BYTES)
        digest = sha256(secret.encode()).digest()
        tenant = Tenant(key_id_of(digest), user, org, limit)
        budget = (limit.tokens, limit.window.value) if limit else (None, None)
        self._write(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
            (tenant.key_id, digest, user, org, *budget, self._clock()),
        )
        return secret, tenant

    def revoke(self, key_id: str) -> bool:
        """Revoke a stored key for good; False where there is none that is in force."""
        return self._write(
            "UPDATE keys SET revoked_at = ? WHERE key_id = ? AND revoked_at IS NULL", (self._clock(), key_id)
        )

    def close(self) -> None:
        """Let go of keys.db."""
        self._db.close()

    def list(self) -> Rows:
        """All keys, revoked ones too: the stored in the order of their making, then the declared."""
        self._refresh()
        rows = [entry.row for entries in self._entries.values() for entry in entries]
        return sorted(rows, key=lambda row: (row.created_at is None, row.created_at or 0.0))

    def _find(self, digest: bytes) -> KeyRow | None:
        """Look a digest up by its start, then compare all of it, for the same time whether or not it is there."""
        found = None
        for entry in self._entries.get(key_id_of(digest), _NOBODY):
            if hmac.compare_digest(entry.digest, digest):
                found = entry.row
        return found

    def _refresh(self) -> None:
        """Read the keys again if another process changed them; else that costs a few microseconds.

        While the file is locked the keys stay as they were read last, for a while: whoever has the lock may be about
        to revoke one, but nobody else can have.
        """
        try:
            self._look()
        except (sqlite3.Error, ValueError) as error:
            if not (locked(error) and self._clock() - self._looked_at < STALE_S_MAX):
                raise _unavailable(error) from None

    def _look(self) -> None:
        """The version is read before the rows: a commit between the two is seen at the next look."""
        if 0 <= self._clock() - self._looked_at < self._look_every_s:
            return
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._load()
            self._version = version
        self._looked_at = self._clock()

    def _load(self) -> None:
        stored = [_stored_entry(row) for row in self._db.execute("SELECT * FROM keys")]
        ever = self._db.execute("SELECT count(*) FROM facts").fetchone()[0] or stored or self._declared
        known = {entry.digest for entry in stored}
        entries: dict[str, list[_Entry]] = {}
        for entry in stored + [entry for entry in self._declared if entry.digest not in known]:
            entries.setdefault(entry.row.tenant.key_id, []).append(entry)
        self._entries = entries
        self._any_configured = self._any_configured or bool(ever)

    def _write(self, statement: str, values: tuple[object, ...]) -> bool:
        """Run one committed statement and take its effect in; whether it changed a row."""
        self._db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        try:
            changed = self._db.execute(statement, values).rowcount > 0
            self._load()  # data_version tells only of other connections
        except sqlite3.Error as error:
            raise _unavailable(error, self._path) from None
        finally:
            self._db.execute(f"PRAGMA busy_timeout = {LOOK_BUSY_MS}")
        return changed


_NOBODY = [_Entry(_DUMMY, KeyRow(OPEN, None, None))]  # no secret hashes to zeros, as far as anybody knows


def _opened(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite's own files take this mode over
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")  # a revocation that was confirmed outlives a power cut
    if db.execute("PRAGMA user_version").fetchone()[0] > SCHEMA:
        raise sqlite3.DatabaseError("made by a newer holdfast")
    db.executescript(_TABLES)
    db.execute(f"PRAGMA user_version = {SCHEMA}")
    return db


def _stored_entry(row: tuple[str, bytes, str, str | None, int | None, str | None, float, float | None]) -> _Entry:
    key_id, digest, user, org, tokens, window, created_at, revoked_at = row
    limit = Limit(tokens, Window(window)) if tokens is not None and window else None
    return _Entry(digest, KeyRow(Tenant(key_id, user, org, limit), created_at, revoked_at))


def _declared_entry(key: DeclaredKey) -> _Entry:
    digest = bytes.fromhex(key.sha256)
    tenant = Tenant(key_id_of(digest), key.user, key.org, key.tokens, source="config")
    return _Entry(digest, KeyRow(tenant, None, None))


def locked(error: Exception) -> bool:
    """Whether another process is at work on the file, rather than the file being at fault."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _unavailable(error: Exception, path: Path | None = None) -> Refused:
    """SQLite's words name tables, never values. path: for those who run the gateway, not for its clients."""
    store = f"the key store {path}" if path else "the key store"
    return Refused(Reason.BOOKS, f"{store} cannot be used: {error}", retry_after_s=1.0)
