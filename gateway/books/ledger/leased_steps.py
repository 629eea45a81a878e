"""The steps of a gateway's own ledger where its accounts hold rights, leased of budgets that many gateways share.

An account's limit is what this gateway has leased of the budget, not the budget; one that only records has UNLIMITED,
as it would alone. Who is let in is decided on the whole budget, as far as it was heard of; what is held is of rights.
"""

from collections.abc import Mapping
from typing import NamedTuple

from gateway.books.ledger.contract import Cell, Grant, More, Place, place
from gateway.books.ledger.steps import Extend, Held, Open, Shelf, made, owner
from guards.budget import UNLIMITED, Account, Limit, Line, Window
from guards.claim import Cover, Load, Part, hoped_for, lacking, lease, shares
from guards.leasing import kept
from guards.money import Price


class Elsewhere(NamedTuple):
    """How an account stands at all other gateways. limit: the budget; spent: and lost; held: what they have leased."""

    limit: int
    spent: int
    held: int


# An account that is not in it was not heard of, or too long ago. It is never changed, but made anew.
Heard = Mapping[Place, Elsewhere]
NOTHING_HEARD: Heard = {}


class Short(Exception):
    """Rights lack, or nothing was heard of the others: an answer of a step, which has changed nothing.

    mine: the limits by this gateway's rights; whole: by the whole budget. lacks: one that the whole budget cannot pay
    now, by its place; None where it could. heard_of: whether of each limit; of one where not, `whole` says nothing.
    heard: whether of all.
    need: what it was short of, all of it; price: of the model.
    """

    def __init__(
        self,
        cells: tuple[Cell, ...],
        mine: list[Part],
        whole: list[Part],
        lacks: int | None,
        heard: Heard,
        need: Load,
        price: Price | None,
    ) -> None:
        super().__init__("rights lack")
        self.places, self.mine, self.whole, self.lacks = [cell.place for cell in cells], mine, whole, lacks
        self.need, self.price = need, price
        found = zip(self.places, mine, strict=True)
        self.heard_of = [part.account.limit == UNLIMITED or at in heard for at, part in found]
        self.heard = all(self.heard_of)


class LeasedOpen(NamedTuple):
    """`Open`, of rights. eager: it must hold all that the whole budget could let it have now, not just enough."""

    asked: Open
    heard: Heard
    eager: bool

    def apply(self, shelf: Shelf, now_s: float) -> Grant:
        asked = self.asked
        assert asked.lines
        assert asked.least.output > 0
        if shelf.hold(asked.request_id) is not None:
            raise ValueError(f"request {asked.request_id} already holds")
        cells, price = asked.lines.cells(shelf, now_s), asked.price
        if asked.least.output >= asked.want.output and asked.alone is None:
            grant = self._at_once(shelf, cells)
            if grant is not None:
                return grant
        mine, whole = [], []
        for cell, unit, limit in zip(cells, asked.lines.units, asked.lines.amounts, strict=True):
            account = rights(cell.account, limit)
            mine.append(Part(unit, account))
            whole.append(Part(unit, over_all(account, limit, self.heard.get(cell.place))))
        least = asked.least
        lacks = lacking(whole, least, price, ever=False)
        if lacks is not None and asked.alone is not None and not hoped_for(whole, least, price):
            least = asked.alone
            lacks = lacking(whole, least, price, ever=False)
        enough = min(asked.want.output, least.output)
        need = Load(asked.want.input, max(enough, lease(whole, asked.want, price)) if self.eager else enough)
        if lacks is not None or lacking(mine, need, price, ever=False) is not None:
            raise Short(cells, mine, whole, lacks, self.heard, need, price)
        payable = asked.least.output
        if payable < asked.want.output or asked.alone is not None:
            payable = lease(whole, Load(asked.want.input, UNLIMITED), price, ever=True)
        output = lease(mine, asked.want, price)
        cover = hold(shelf, cells, mine, Load(asked.want.input, output), price, asked.lines.telling)
        shelf.keep_hold(asked.request_id, Held(cells, cover, asked.lines))
        return Grant(cells, cover, output, payable)

    def _at_once(self, shelf: Shelf, cells: tuple[Cell, ...]) -> Grant | None:
        """What `apply` comes to where there is enough of everything, as there mostly is; None where that is not so."""
        request_id, lines, price, want, least, _ = self.asked
        needs = shares(least, price)
        wants = needs if want == least else shares(want, price)
        after = []
        for cell, unit, bound in zip(cells, lines.units, self._bounds(cells), strict=True):
            account, wanted = cell.account, wants[unit]
            if account is None:
                return None
            most, spent, held = account
            used = spent + held
            if (most == UNLIMITED) != (bound == UNLIMITED) or used + needs[unit] > bound or used + wanted > most:
                return None
            after.append(made(Account, (most, spent, held + wanted)))
        shelf.write_all(cells, after)
        cover = Cover(lines.units, tuple([wants[unit] for unit in lines.units]), price, lines.telling)
        shelf.keep_hold(request_id, Held(cells, cover, lines))
        return Grant(cells, cover, want.output, least.output)

    def _bounds(self, cells: tuple[Cell, ...]) -> tuple[int, ...]:
        """What this gateway could have used of each limit at most, by what was heard; below 0 where nothing was.

        Remembered with the limits: they are the same for many requests, and something is heard once a second.
        """
        lines, heard = self.asked.lines, self.heard
        if lines.bounds is None or lines.bounds[0] is not heard or lines.bounds[1] is not cells:
            found = []
            for cell, limit in zip(cells, lines.amounts, strict=True):
                elsewhere = heard.get(cell.place)
                known = -1 if elsewhere is None else limit - elsewhere.spent - elsewhere.held
                found.append(UNLIMITED if limit == UNLIMITED else known)
            lines.bounds = heard, cells, tuple(found)
        return lines.bounds[2]


class LeasedExtend(NamedTuple):
    """`Extend`, of rights."""

    asked: Extend
    heard: Heard
    eager: bool

    def apply(self, shelf: Shelf, now_s: float) -> More:
        request_id, want, least = self.asked
        held = shelf.hold(request_id)
        if held is None:
            return More(None)
        units, amounts, price, telling = held.cover
        mine, whole = [], []
        for cell, unit, amount in zip(held.cells, units, amounts, strict=True):
            account, elsewhere = owner(cell), self.heard.get(cell.place)
            mine.append(Part(unit, account, amount))
            limit = account.limit if elsewhere is None else elsewhere.limit
            whole.append(Part(unit, over_all(account, limit, elsewhere), amount))
        reach, output = lease(whole, want, price), lease(mine, want, price)
        if reach < least or output < (reach if self.eager else least):
            lacks = lacking(whole, Load(want.input, least), price, ever=False)
            need = Load(want.input, max(least, reach) if self.eager else least)
            raise Short(held.cells, mine, whole, lacks, self.heard, need, price)
        cover = hold(shelf, held.cells, mine, Load(want.input, output), price, telling)
        shelf.keep_hold(request_id, held._replace(cover=cover))
        return More(cover)


class LeasedRelimit(NamedTuple):
    """`Relimit`, as far as it is this gateway's: it never has more rights than there is budget."""

    line: Line

    def apply(self, shelf: Shelf, now_s: float) -> bool:
        cell = shelf.cell(place(*self.line, now_s))
        if cell.account is None:
            return False
        amount = self.line.limit.within(cell.place.window)
        shelf.write(cell, within(rights(cell.account, amount), amount))
        return True


class Look(NamedTuple):
    """How a limit's account stands here, by the whole budget as far as it was heard of."""

    scope: str
    limit: Limit
    heard: Mapping[Place, Elsewhere]

    def apply(self, shelf: Shelf, now_s: float) -> Account:
        at = place(self.scope, self.limit, now_s)
        amount = self.limit.within(at.window)
        account = shelf.cell(at).account or Account(amount)
        elsewhere = self.heard.get(at, Elsewhere(amount, 0, 0))
        return Account(amount, account.spent + elsewhere.spent, account.held + elsewhere.held)


class Saying(NamedTuple):
    """What the vault is about to be told of an account. limit: the budget; None where it only records.

    cushion, asked, unleased, wanted: by which it is found what is given back; see `guards.leasing.kept`.
    """

    place: Place
    limit: int | None
    cushion: int = 0
    asked: int = 0
    unleased: int = UNLIMITED
    wanted: bool = False


class GiveBack(NamedTuple):
    """Give back what is too much, before the vault hears of it; say how all accounts stand then.

    What a correction charged beyond the rights there were counts as leased, so that more of them are of use.
    """

    sayings: tuple[Saying, ...]

    def apply(self, shelf: Shelf, now_s: float) -> list[Account]:
        stands = []
        for at, limit, cushion, asked, unleased, wanted in self.sayings:
            cell = shelf.cell(at)
            account = rights(cell.account, UNLIMITED if limit is None else limit)
            if limit is not None:
                account = within(account._replace(limit=max(account.limit, account.spent + account.held)), limit)
                free = kept(account.free, cushion, asked, unleased, wanted=wanted)
                account = account._replace(limit=account.limit - account.free + free)
            if cell.account is not None and cell.account != account:
                shelf.write(cell, account)
            stands.append(account)
        return stands


class Numbers(NamedTuple):
    """How many corrections these books have had, and how its accounts stand after giving back: as of one moment."""

    give_back: GiveBack

    def apply(self, shelf: Shelf, now_s: float) -> tuple[int, list[Account]]:
        return shelf.corrections(), self.give_back.apply(shelf, now_s)


class TakeIn(NamedTuple):
    """Take in the rights that the vault gave: so much in all, of each account."""

    given: tuple[tuple[Place, int], ...]

    def apply(self, shelf: Shelf, now_s: float) -> None:
        for at, amount in self.given:
            cell = shelf.cell(at)
            account = cell.account or Account(0)
            if account.limit < amount:  # nor of one that has come to record only
                shelf.write(cell, account._replace(limit=amount))


class Limits(NamedTuple):
    """The limits of all accounts that somebody can spend of from now on."""

    def apply(self, shelf: Shelf, now_s: float) -> list[tuple[Place, int]]:
        present = {window.id_at(now_s) for window in Window}
        return [(at, one.limit) for at, one in shelf.accounts() if at.window in present or one.held]


class Disown(NamedTuple):
    """Have no rights, whatever the accounts say.

    They are those of a gateway that shared with nobody, or older than what the vault knows: of a copy of its books.
    """

    def apply(self, shelf: Shelf, now_s: float) -> None:
        for at, account in list(shelf.accounts()):
            used = account.spent + account.held
            if account.limit not in (UNLIMITED, used):
                shelf.write(shelf.cell(at), account._replace(limit=used))


def rights(account: Account | None, limit: int) -> Account:
    """An account with what this gateway may spend of it: without a row nothing, and without a limit anything."""
    if limit == UNLIMITED:
        return Account(UNLIMITED) if account is None else account._replace(limit=UNLIMITED)
    if account is None:
        return Account(0)
    return account if account.limit != UNLIMITED else account._replace(limit=account.spent + account.held)


def within(account: Account, amount: int) -> Account:
    """An account with no more rights than there is budget, but for those that are used."""
    most = max(amount, account.spent + account.held)
    return account if account.limit <= most else account._replace(limit=most)


def over_all(account: Account, amount: int, elsewhere: Elsewhere | None) -> Account:
    """The same over all gateways; one that was not heard of has nothing."""
    if amount == UNLIMITED:
        return account
    if elsewhere is None:
        return Account(0)
    return Account(amount, account.spent + elsewhere.spent, account.held + elsewhere.held)


def hold(
    shelf: Shelf,
    cells: tuple[Cell, ...],
    parts: list[Part],
    load: Load,
    price: Price | None,
    telling: tuple[int, ...] | None,
) -> Cover:
    """Have every account hold its share of a load instead of what it has of this request. telling: see `Cover`."""
    needs = shares(load, price)
    shelf.write_all(cells, [account.hold(needs[unit] - held) for unit, account, held in parts])
    return Cover(tuple([part.unit for part in parts]), tuple([needs[part.unit] for part in parts]), price, telling)
