"""API keys: who a secret stands for. Stored hashed, looked up in memory, revoked within one request.

A secret is 256 random bits, so plain SHA-256 is enough at rest: slow hashes protect secrets that can be
guessed, and 2^256 cannot be, while 100 ms per request would be an attack of our own.
"""

import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from gateway.books.declared import Declared
from gateway.books.keys_file import (
    BUSY_MS,
    ORDERS_MAX,
    TOP_UPS_MAX,
    Statement,
    TopUp,
    change_begun,
    full,
    limit_kept,
    locked,
    opened,
    order_kept,
    order_named,
    top_up_kept,
    top_up_named,
    transaction,
    unavailable,
)
from gateway.books.tenants import OPEN, Limits, Tenant, nameable, tenant
from gateway.config import Bounded, DeclaredBudget, DeclaredKey
from guards.budget import UNLIMITED, Limit, Line, Unit, Window
from guards.burn import Plan
from guards.refusal import Reason, Refused
from guards.scope import LEVELS_EACH, each_of, scope, scopes, tag_of

SECRET_BYTES = 32
LOOK_BUSY_MS = 5  # to look, which the event loop waits for
EXTRAS_MAX = 4  # windows of a limit whose top-ups are remembered
STALE_S_MAX = 30.0  # how long keys that were read are believed while another process keeps the file locked


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key for people to look at. Times in Unix seconds; created_at is None for declared keys."""

    tenant: Tenant
    created_at: float | None
    revoked_at: float | None


class Order(NamedTuple):
    """A correction of the books that another process asks for. said: JSON, see `books.corrections`."""

    name: str
    said: str


class News(NamedTuple):
    """What changed of keys since it was asked for last. revoked: ids of keys; limits: scopes, and what holds there.

    orders: those that are kept, also from before the start, in their order.
    """

    revoked: frozenset[str]
    limits: tuple[Line, ...]
    orders: tuple[Order, ...] = ()


@dataclass(slots=True)
class _Entry:
    """A key. row: as it was made of it and the limits, when these were as `as_of` numbers them."""

    digest: bytes
    key_id: str
    user: str
    org: str | None
    team: str | None
    created_at: float | None
    revoked_at: float | None
    source: Literal["store", "config"] = "store"
    row: KeyRow | None = None
    as_of: int = -2


Rows = list[KeyRow]  # the method named `list` hides the type from its own class


def key_id_of(digest: bytes) -> str:
    """Name a key by the start of its hash: short enough to say, and no help in finding the secret."""
    return "key_" + digest.hex()[:12]


class Keys:
    """The keys of one data directory and those declared in the configuration. Used from one thread.

    path: keys.db, made with its directory where missing, readable by its owner only.
    declared: keys of the configuration; one that is also in the store and revoked there is revoked.
    budgets: limits of the configuration, by scope; one in the store for the same unit and window wins. Rates,
        breakers and timeouts are the configuration's alone.
    plan: how limits are watched where no scope says how.
    clock: Unix seconds.
    look_every_s: how old an answer to «did another process change them?» may be, in seconds; a key that is not
        known is looked for at once, and so is the first one.
    Every method raises Refused(Reason.BOOKS) where keys.db cannot be read or written.

    Three things say how fresh what it has is: `_looked_at`, when it was last asked whether the file changed at all;
    `_version`, the file's own count of other processes' commits at that time; `_keys_as_of` and `_limits_as_of`, the
    numbers of the last changes that were read, so that only later ones are.
    """

    def __init__(
        self,
        path: Path,
        declared: tuple[DeclaredKey, ...] = (),
        clock: Callable[[], float] = time.time,
        look_every_s: float = 0.0,
        budgets: tuple[DeclaredBudget, ...] = (),
        plan: Plan | None = None,
    ) -> None:
        self._path = path
        self._clock, self._look_every_s = clock, look_every_s
        self._limits: dict[str, dict[tuple[Unit, Window], Limit]] = {}  # in force, by scope
        self._declared_limits: dict[str, dict[tuple[Unit, Window], Limit]] = {}
        self._declared = Declared(plan)
        self._extras: dict[str, dict[tuple[Unit, Window], dict[str, int]]] = {}  # top-ups, by scope and window's name
        self._keys_as_of = self._limits_as_of = self._orders_as_of = -1  # the last change of each that was read
        self._limits_at = 0.0  # unix seconds of the last change of a limit
        self._entries: dict[bytes, _Entry] = {}  # by digest
        self._orgs: dict[str, str | None] = {OPEN.key_id: OPEN.org}  # of keys, by id
        for key in declared:
            entry = _declared_entry(key)
            self._take_in(entry)
            self._declare(scope("key", entry.key_id), key.budgets, key)
        for budget in budgets:
            self._declare(budget.scope, budget.limits, budget)
        self._version = -1
        self._looked_at = -math.inf  # Unix seconds
        self._any_configured = bool(declared)
        self._revoked: set[str] = set()  # for `news`, as the next
        self._changed: dict[tuple[str, Unit, Window], Limit] = {}
        self._orders: list[Order] = []
        try:
            self._db = opened(path)
            if declared:
                self._db.execute("INSERT OR IGNORE INTO facts VALUES ('declared')")
            self._look()
            self._revoked.clear()  # before anybody ran
            self._changed.clear()
            self._db.execute(f"PRAGMA busy_timeout = {LOOK_BUSY_MS}")
        except (sqlite3.Error, OSError, ValueError) as error:
            raise unavailable(error, path) from None

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
        if not self._any_configured and self._look_every_s:
            self.look_again()  # the first one may have been made just now: from then on nobody is let in without
            self._refresh()
        if not self._any_configured:
            return OPEN
        if not secret:
            raise Refused(Reason.UNAUTHORIZED, "an API key is needed: send it as a bearer token")
        digest = sha256(secret.encode("utf-8", "surrogatepass")).digest()
        row = self._find(digest)
        if row is None and self._look_every_s:
            self.look_again()  # it may have been made just now
            self._refresh()
            row = self._find(digest)
        if row is None:
            raise Refused(Reason.UNAUTHORIZED, "unknown API key")
        if row.revoked_at is not None:
            raise Refused(Reason.UNAUTHORIZED, f"the API key {row.tenant.key_id} was revoked")
        return row.tenant

    def create(
        self, user: str, org: str | None = None, limits: Iterable[Limit] = (), team: str | None = None
    ) -> tuple[str, Tenant]:
        """Make a key and return its secret, which is kept nowhere. Raises ValueError on unprintable names."""
        nameable(user, org, team)
        secret = "hf-" + secrets.token_urlsafe(SECRET_BYTES)
        digest = sha256(secret.encode()).digest()
        key_id = key_id_of(digest)
        names = {"key_id": key_id, "user": user, "org": org, "team": team}
        self._write(
            (
                "INSERT INTO keys VALUES (:key_id, :digest, :user, :org, :team, :now, NULL, :change)",
                names | {"digest": digest, "now": self._clock()},
            ),
            *(limit_kept(scope("key", key_id), limit) for limit in limits),
        )
        return secret, self._row(self._entries[digest]).tenant

    def revoke(self, key_id: str) -> bool:
        """Revoke a stored key for good; False where there is none that is in force."""
        return self._write(
            (
                "UPDATE keys SET revoked_at = :now, change = :change WHERE key_id = :key_id AND revoked_at IS NULL",
                {"now": self._clock(), "key_id": key_id},
            )
        )

    def look_again(self) -> None:
        """What another one has written by now is known from the next question on, however fresh the last answer is."""
        self._looked_at = -math.inf

    def news(self) -> News:
        """Tell what running requests must hear of. A limit that was taken away is unlimited."""
        self._refresh()
        limits = tuple(Line(at, limit) for (at, *_), limit in self._changed.items())
        found = News(frozenset(self._revoked), limits, tuple(self._orders))
        self._revoked.clear()
        self._changed.clear()
        self._orders.clear()
        return found

    def limits(self) -> Limits:
        """The limits in force, by scope."""
        self._refresh()
        return {at: tuple(known.values()) for at, known in sorted(self._limits.items()) if known}

    def set_limit(self, at: str, limit: Limit) -> None:
        """Put a limit on a scope, instead of the one of the same unit and window."""
        self._write(limit_kept(at, limit))

    def remove_limit(self, at: str, unit: Unit, window: Window) -> bool:
        """Take a stored limit off a scope; False where there is none. The configuration's may show again."""
        return self._write(
            (
                "UPDATE limits SET amount = NULL, change = :change, at = :at"
                " WHERE scope = :scope AND unit = :unit AND window = :window AND amount IS NOT NULL",
                {"scope": at, "unit": unit.value, "window": window.value},
            )
        )

    def set_limits(self, limits: Limits) -> bool:
        """Have scopes be under these stored limits alone; whether they were under any before."""
        names = {f"scope{number}": at for number, at in enumerate(limits)}
        which = ", ".join(f":{name}" for name in names)
        gone = "UPDATE limits SET amount = NULL, change = :change, at = :at WHERE amount IS NOT NULL AND scope IN"
        gone += f" ({which})"
        statements = [limit_kept(at, limit) for at, found in limits.items() for limit in found]
        return self._write((gone, dict(names)), *statements)

    def top_up(self, name: str, at: str, more: Limit) -> tuple[TopUp, bool]:
        """Add to a limit's present window, once for a name; what was added under it, and whether that was now.

        Raises LookupError where the scope has no such limit, ValueError where the name means another top-up.
        """
        self._refresh()
        now_s = self._clock()
        one = TopUp(name, now_s, at, more.unit, more.window, more.window.id_at(now_s), more.amount)
        if full(self._db, "top_ups", TOP_UPS_MAX):
            raise ValueError(f"there are {TOP_UPS_MAX:,} top-ups already")
        if (more.unit, more.window) not in self._limits.get(at, {}) and top_up_named(self._db, name) is None:
            raise LookupError(f"{at} has no limit in {more.unit} per {more.window}")
        new = self._write(*top_up_kept(one))
        known = top_up_named(self._db, name)
        assert known is not None
        if (known.scope, known.unit, known.window, known.amount) != (at, more.unit, more.window, more.amount):
            raise ValueError(f"the id {name!r} means another top-up, of {known.scope}: take another id")
        return known, new

    def order(self, name: str, said: str) -> bool:
        """Ask the gateway that runs on this directory for a correction; False where its name is known.

        Raises ValueError where too many wait.
        """
        if full(self._db, "orders", ORDERS_MAX):
            raise ValueError(f"{ORDERS_MAX} corrections wait for a gateway already")
        return self._write(*order_kept(name, said, self._clock()))

    def ordered(self, name: str) -> str | None:
        """What the order of a name says that waits for the gateway; None where none does."""
        return order_named(self._db, name)

    def order_done(self, name: str) -> None:
        """Forget an order that was carried out: the ledger knows its name."""
        self._write(("DELETE FROM orders WHERE name = :name", {"name": name}))

    def tag_of(self, at: str) -> str | None:
        """Say under which tag the accounts of a scope are; None for a key that is not known, or not any more."""
        try:
            return tag_of(at, self._orgs.__getitem__)
        except KeyError:
            return None

    def close(self) -> None:
        """Let go of keys.db."""
        self._db.close()

    def list(self) -> Rows:
        """All keys, revoked ones too: the stored in the order of their making, then the declared."""
        self._refresh()
        rows = [self._row(entry) for entry in self._entries.values()]
        return sorted(rows, key=lambda row: (row.created_at is None, row.created_at or 0.0))

    def _find(self, digest: bytes) -> KeyRow | None:
        """Look a digest up. The time that takes tells nothing of use: nobody can choose what a secret hashes to."""
        entry = self._entries.get(digest)
        return None if entry is None else self._row(entry)

    def _row(self, entry: _Entry) -> KeyRow:
        """Join a key with its limits, when it is first asked for after either changed."""
        if entry.row is None or entry.as_of != self._limits_as_of:
            limits = {at: tuple(known.values()) for at, known in self._limits_of(entry)}
            said = self._declared
            who = tenant(
                entry.key_id, entry.user, entry.org, entry.team, limits, entry.source, said.rates, said.plans,
                each_as_of=self._limits_at, times=said.times, truncates=said.truncates, tiers=said.tiers,
            )  # fmt: skip
            entry.row, entry.as_of = KeyRow(who, entry.created_at, entry.revoked_at), self._limits_as_of
        return entry.row

    def _limits_of(self, entry: _Entry) -> Iterable[tuple[str, dict[tuple[Unit, Window], Limit]]]:
        for at in scopes(entry.key_id, entry.user, entry.org, entry.team):
            for one in (at, *(each_of(level, at) for level in LEVELS_EACH)):
                if one in self._limits:
                    yield one, self._limits[one]

    def _refresh(self) -> None:
        """Read the keys again if another process changed them; else that costs a few microseconds.

        While the file is locked the keys stay as they were read last, for a while: whoever has the lock may be about
        to revoke one, but nobody else can have.
        """
        try:
            self._look()
        except (sqlite3.Error, ValueError) as error:
            if not (locked(error) and self._clock() - self._looked_at < STALE_S_MAX):
                raise unavailable(error) from None

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
        """Read what has changed since the last time, all as of one moment: tables share the numbers of changes."""
        self._db.execute("BEGIN")
        try:
            self._read()
        finally:
            self._db.execute("ROLLBACK")

    def _read(self) -> None:
        ever = self._db.execute("SELECT count(*) FROM facts").fetchone()[0]
        since = "SELECT * FROM {} WHERE change > ? ORDER BY change"
        for *row, change in self._db.execute(since.format("keys"), (self._keys_as_of,)).fetchall():
            key_id, digest, *rest = row
            entry = _Entry(digest, key_id, *rest)
            self._take_in(entry)
            if entry.revoked_at is not None:
                self._revoked.add(key_id)
            self._keys_as_of = change
        as_of = self._limits_as_of
        for *row, change, at_s in self._db.execute(since.format("limits"), (as_of,)).fetchall():
            self._take_limit_in(at_s, *row)
            self._limits_as_of, self._limits_at = change, max(self._limits_at, at_s)
        for _, *top_up, change in self._db.execute(since.format("top_ups"), (as_of,)).fetchall():
            self._take_top_up_in(*top_up)
            self._limits_as_of = max(self._limits_as_of, change)
        for name, _, said, change in self._db.execute(since.format("orders"), (self._orders_as_of,)).fetchall():
            self._orders.append(Order(name, said))
            self._orders_as_of = change
        self._any_configured = self._any_configured or bool(ever) or bool(self._entries)

    def _take_in(self, entry: _Entry) -> None:
        """Put a key in the place of the one with the same digest, stored before or declared."""
        self._entries.pop(entry.digest, None)  # the last is the newest
        self._entries[entry.digest] = entry
        self._orgs[entry.key_id] = entry.org

    def _take_limit_in(self, at_s: float, at: str, unit: str, window: str, amount: int | None) -> None:
        """Put a limit in force; without an amount, the declared one if there is one, from then on."""
        which, known = (Unit(unit), Window(window)), self._limits.setdefault(at, {})
        declared = self._declared_limits.get(at, {}).get(which)
        limit = declared if amount is None else Limit(amount, which[1], which[0])
        if limit is None:
            known.pop(which, None)
        else:
            extra = self._extras.get(at, {}).get(which, {})
            limit = known[which] = replace(limit, extra=tuple(extra.items()), as_of=at_s)
        self._changed[at, *which] = limit or Limit(UNLIMITED, which[1], which[0], as_of=at_s)

    def _take_top_up_in(self, at_s: float, at: str, unit: str, window: str, window_id: str, amount: int) -> None:
        """Add to one window of a limit; names of windows grow with time, and of those that are over few are kept."""
        which = Unit(unit), Window(window)
        extra = self._extras.setdefault(at, {}).setdefault(which, {})
        extra[window_id] = extra.get(window_id, 0) + amount
        while len(extra) > EXTRAS_MAX:
            del extra[min(extra)]
        limit = self._limits.get(at, {}).get(which)
        if limit is not None:
            limit = replace(limit, extra=tuple(extra.items()), as_of=max(limit.as_of, at_s))
            self._changed[at, *which] = self._limits[at][which] = limit

    def _declare(self, at: str, limits: Iterable[Limit], said: Bounded) -> None:
        self._declared.take(at, said)
        for where, found in ((at, limits), *((each_of(level, at), of_each) for level, of_each in said.each.items())):
            for limit in found:
                which = limit.unit, limit.window
                self._declared_limits.setdefault(where, {})[which] = limit
                self._limits.setdefault(where, {})[which] = limit

    def _write(self, *statements: Statement) -> bool:
        """Run statements in one transaction, and take their effect in; whether the first one changed a row."""
        db = self._db
        db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        try:
            with transaction(db):
                change = change_begun(db, self._clock())
                done = [db.execute(text, values | change).rowcount for text, values in statements]
            self._load()  # data_version tells only of other connections
        except sqlite3.Error as error:
            raise unavailable(error, self._path) from None
        finally:
            db.execute(f"PRAGMA busy_timeout = {LOOK_BUSY_MS}")
        return done[0] > 0


def _declared_entry(key: DeclaredKey) -> _Entry:
    digest = bytes.fromhex(key.sha256)
    return _Entry(digest, key_id_of(digest), key.user, key.org, key.team, None, None, "config")
