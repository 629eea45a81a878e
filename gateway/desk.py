"""What operators may ask and change while a gateway runs; all but `holds` and `reset` is for a thread."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from gateway import key_table
from gateway.books.corrections import Corrections, LeftOut, made, nameable, reset
from gateway.books.directories import directories, journals
from gateway.books.keys import Keys
from gateway.books.keys_file import TopUp
from gateway.books.ledger.contract import Place
from gateway.books.ledger.orders import OtherOrder
from gateway.books.ledger.tables import read_balances
from gateway.books.replay import Damaged, Fact, facts
from gateway.books.repricing import spans
from gateway.books.tenants import Limits
from gateway.key_table import Balances, budget
from gateway.record import Records
from gateway.spend import Sum
from guards.budget import Limit, Unit, Window
from guards.refusal import Reason, Refused
from guards.scope import LEVELS_EACH, each_of, scope

ORDER_S_MAX = 10.0  # until all workers have made a correction
SPEND_S_MAX = 20.0  # of reading a journal, for one question
GENTLY = 64  # facts; so often the event loop may have the interpreter, which it would wait 5 ms for otherwise
SCOPES_EACH = {level: f"each {level} of " for level in LEVELS_EACH}
Shown = dict[str, Any]  # JSON


class Unknown(LookupError):
    """What was asked for is not there; its text says what."""


class Desk:
    """Keys, budgets and spend of one data directory, those of all its workers together.

    open_keys: opens the key store anew, for one question.
    closing: whoever reads a journal is to end.
    """

    def __init__(self, data: Path, open_keys: Callable[[], Keys], corrections: Corrections, records: Records) -> None:
        self._data, self._open_keys = data, open_keys
        self._corrections, self._records = corrections, records
        self.closing = False

    # ---------------------------------------------------------------- budgets

    def budgets(self, after: str, most: int) -> tuple[list[Shown], str | None]:
        """All scopes that have limits, by name, those after one; and after which one there are more."""
        with closing(self._open_keys()) as keys:
            limits = keys.limits()
        names = sorted({_base(at) for at in limits})
        page = [name for name in names if name > after][: most + 1]
        balances = self._balances(page[:most])
        following = page[most - 1] if len(page) > most else None
        return [_shown(at, limits, balances) for at in page[:most]], following

    def budget(self, at: str) -> Shown:
        """One scope. Raises Unknown where it has no limits."""
        with closing(self._open_keys()) as keys:
            limits = keys.limits()
        shown = _shown(at, limits, self._balances([at]))
        if not (shown["limits"] or shown["each"]):
            raise Unknown(f"{at} has no limits.")
        return shown

    def set_limits(self, at: str, limits: Iterable[Limit], each: Mapping[str, Iterable[Limit]]) -> Shown:
        """Have these be the stored limits of a scope, all of them."""
        with closing(self._open_keys()) as keys:
            keys.set_limits({at: tuple(limits)} | {each_of(one, at): tuple(each.get(one, ())) for one in LEVELS_EACH})
            known = keys.limits()
        return _shown(at, known, self._balances([at]))

    def remove_limits(self, at: str, which: tuple[Unit, Window] | None) -> bool:
        """Take stored limits off a scope, one of them or all; False where there is none."""
        with closing(self._open_keys()) as keys:
            if which is not None:
                return keys.remove_limit(at, *which)
            return keys.set_limits({name: () for name in (at, *(each_of(one, at) for one in LEVELS_EACH))})

    def top_up(self, name: str, at: str, more: Limit) -> tuple[TopUp, bool]:
        """See `Keys.top_up`."""
        with closing(self._open_keys()) as keys:
            return keys.top_up(nameable(name), at, more)

    async def reset(self, name: str, at: str, unit: Unit, window: Window) -> tuple[Place, int | None]:
        """Begin an account anew, once for a name: which, and what was given back; None where that was before.

        Raises ValueError for a bad name, Refused: BOOKS, or with 409 where the name is another order's, or some of it
        could not be reset.
        """
        place = Place(at, unit.value, window.id_at(time.time()))
        try:
            return place, await self._reset(nameable(name), place)
        except OtherOrder as error:
            raise Refused(Reason.INVALID, f"{error}.", param="id", status=409) from None

    async def _reset(self, name: str, place: Place) -> int | None:
        """What was given back."""
        if directories(self._data):
            return await asyncio.to_thread(self._reset_all, name, place)
        done = await self._corrections.make(name, reset(place))
        return None if done is None else -sum(amount for one in done for _, amount in one.charges)

    def _reset_all(self, name: str, place: Place) -> int | None:
        """The same of all workers' accounts."""
        spent = sum(one.spent for one in read_balances(self._data, [place.scope]) if Place(*one[:3]) == place)
        try:
            done = made(self._data, name, reset(place), lambda: closing(self._open_keys()), ORDER_S_MAX)
        except TimeoutError as error:
            raise Refused(Reason.BOOKS, str(error), retry_after_s=1.0) from None
        except LeftOut as error:
            raise Refused(Reason.INVALID, f"{error}.", status=409) from None
        return spent if done else None

    def _balances(self, scopes: Iterable[str]) -> Balances:
        rows = read_balances(self._data, scopes)
        return {(row.scope, row.unit, row.window): (row.spent, row.held) for row in rows}

    # ---------------------------------------------------------------- what runs, and what was spent

    def holds(self, most: int) -> Shown:
        """The requests that hold budget, those that began first. From the event loop."""
        running = self._records.running
        return {"holds": [one.shown() for one, _ in zip(running, range(most), strict=False)], "total": len(running)}

    def spend(self, by: str, since_s: float) -> tuple[list[Shown], bool]:
        """What was spent since, by whom, and whether more was charged for what died.

        Raises TimeoutError where that is too much to read, Refused (BOOKS) where the journal is damaged.
        """
        found, ends_at = Sum(by), time.monotonic() + SPEND_S_MAX

        def may_go_on() -> None:
            time.sleep(0)
            if self.closing or time.monotonic() > ends_at:
                raise TimeoutError("There is too much to read at once: ask for less, or holdfast spend for it.")

        try:
            for path in journals(self._data):
                found.add(gently(facts(path, since_s), may_go_on), spans(path, may_go_on))
        except Damaged as error:
            raise Refused(Reason.BOOKS, str(error)) from None
        return [one.as_dict() for _, one in found.rows], found.recovered

    # ---------------------------------------------------------------- keys

    def keys(self, after: str, most: int) -> tuple[list[Shown], str | None]:
        """All keys, by id, those after one; and after which one there are more."""
        with closing(self._open_keys()) as keys:
            rows = sorted(keys.list(), key=lambda row: row.tenant.key_id)
        page = [row for row in rows if row.tenant.key_id > after][: most + 1]
        balances = self._balances([scope("key", row.tenant.key_id) for row in page[:most]])
        following = page[most - 1].tenant.key_id if len(page) > most else None
        return [one.as_dict() for one in key_table.lines_of(page[:most], balances, time.time())], following

    def make_key(self, user: str, org: str | None, team: str | None, limits: Iterable[Limit]) -> Shown:
        """Make a key; its secret is in the answer and nowhere else. Raises ValueError."""
        with closing(self._open_keys()) as keys:
            secret, made = keys.create(user, org, limits, team)
        own = [{"unit": one.unit.value, "window": one.window.value, "amount": one.amount} for one in made.own]
        return {"key": secret, "key_id": made.key_id, "user": user, "org": org, "team": team, "limits": own}

    def revoke(self, key_id: str) -> tuple[bool, bool]:
        """Revoke a key: whether it was in force, and whether the configuration declares it."""
        with closing(self._open_keys()) as keys:
            done = keys.revoke(key_id)
            return done, any(row.tenant.key_id == key_id and row.tenant.source == "config" for row in keys.list())


def gently(told: Iterator[Fact], may_go_on: Callable[[], None]) -> Iterator[Fact]:
    """Read on, as long as one may."""
    for number, fact in enumerate(told):
        if number % GENTLY == 0:
            may_go_on()
        yield fact


def _base(at: str) -> str:
    """The scope that limits are about, also where they are of each session within it."""
    for begins in SCOPES_EACH.values():
        if at.startswith(begins):
            return at.removeprefix(begins)
    return at


def _shown(at: str, limits: Limits, balances: Balances) -> Shown:
    now_s = time.time()
    lines = []
    for limit in limits.get(at, ()):
        resets_at = limit.window.resets_at(now_s)
        line = budget(at, limit, balances, now_s)
        lines.append(line.as_dict() | {"resets_at": resets_at and f"{resets_at:%Y-%m-%dT%H:%M:%SZ}"})
    each = {
        level: [{"unit": one.unit.value, "window": one.window.value, "amount": one.amount} for one in found]
        for level in LEVELS_EACH
        if (found := tuple(limits.get(each_of(level, at), ())))
    }
    return {"scope": at, "limits": lines, "each": each}
