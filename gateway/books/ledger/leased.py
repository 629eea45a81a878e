"""The ledger of one of many gateways: its own file, on rights that it leases of a vault."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import structlog

from gateway.books.ledger.contract import NOTHING, About, Charged, Correction, Grant, Lines, More, Place, place
from gateway.books.ledger.gone import Gone
from gateway.books.ledger.lease import IDLE_S, Lease, learn, remember
from gateway.books.ledger.leased_steps import (
    NOTHING_HEARD,
    Disown,
    Heard,
    LeasedExtend,
    LeasedOpen,
    LeasedRelimit,
    Limits,
    Look,
    Short,
)
from gateway.books.ledger.one_off import OneOff
from gateway.books.ledger.register import Entry, Register, told_of
from gateway.books.ledger.shortage import AGAIN_S, unavailable, wishes
from gateway.books.ledger.sqlite import Opening, SqliteLedger
from gateway.books.ledger.steps import Extend, Open
from gateway.books.ledger.tables import Told
from gateway.books.vault.contract import RENEW_S, Vault
from guards.budget import UNLIMITED, Account, Limit, Line
from guards.claim import Load, Part, hoped_for, lacking
from guards.escrow import AMOUNT_MAX
from guards.money import Price, Tokens
from guards.refusal import Reason, Refused

log = structlog.get_logger()

LOOK_S = 0.25  # how often it is seen whose lease is to be renewed, or is over
MORE = 4  # times as much is asked for with each try: others here were quicker, so they may be many
FRUITLESS_S = 0.1  # after an exchange that gave too little, others that lack something are refused without one
HOPE_S = (
    0.35  # for rights that lie idle elsewhere to come here: others hear of the need within LOOK_S, and give them back
)
HOPING_MAX = 64  # requests under one tag that wait for that; more are told to come again
RENEWALS_MAX = 64  # tags renewed at once; others wait for their turn
END_S_MAX = 5.0  # for all rights to go back at the end
TRIES_MAX = 8  # exchanges for one step: what the vault gives at once is a part of what is left, and others here take it
LEASES_MAX = 65_536


class LeasedLedger:
    """`Ledger` of one gateway of many, of limits that all of them share.

    Its own file has accounts of the rights that it leased, so that every step is as quick and as durable as alone, and
    a crash charges what was held. Where rights lack, the vault is asked, by all that lack some together, and the step
    is taken once more; what is used steadily is leased ahead.

    Rights may be spent until LEASE_S after the vault was last asked with success. Then nothing new is let in, and the
    requests that spend them are ended by `on_lapse`, but for those that, as `goes_on` says, use up what there is.

    data of `local`: also has `rights.sqlite3`, with this gateway's name and what is to be told of its accounts.
    clock: monotonic, seconds; wall: unix seconds. goes_on: by a request's limits. hope_s: see HOPE_S.
    gone: sees to gateways that are gone; one_off: to this one's end, where it is for good; None: nobody does.
    serves: whether it was ready to serve; a start that failed is not the end of a one-off.
    on_lapse: ends the requests of whose limits it is told that they must, again and again; returns how many those were.
    """

    def __init__(
        self,
        local: SqliteLedger,
        register: Register,
        vault: Vault,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        goes_on: Callable[[Lines], bool] = lambda lines: False,
        hope_s: float = HOPE_S,
        gone: Gone | None = None,
        one_off: OneOff | None = None,
    ) -> None:
        self._gone, self._one_off = gone, one_off
        self._hope_s = hope_s
        self.local, self.register, self.vault = local, register, vault
        self._clock, self._wall, self._goes_on = clock, wall, goes_on
        self.on_lapse: Callable[[Callable[[Sequence[Line]], bool]], int] = lambda over: 0
        self.leases: dict[str, Lease] = {}
        self._works: set[asyncio.Task[None]] = set()
        self._tag_of: Callable[[str], str | None] = lambda scope: None
        self._down = ""
        self._closed = self.serves = False

    # ---------------------------------------------------------------- as alone

    @property
    def healthy(self) -> bool:
        return self.local.healthy

    @property
    def commits(self) -> int:
        return self.local.commits

    @property
    def recovered(self) -> dict[Place, int]:
        return self.local.recovered

    @property
    def outbox(self) -> list[Told]:
        return self.local.outbox

    def journaled(self, batch: int) -> None:
        self.local.journaled(batch)

    def on_batch(self, then: Callable[[int], None]) -> None:
        self.local.on_batch(then)

    def settle(self, request_id: str, used: Tokens, about: About = NOTHING) -> asyncio.Future[Charged | None]:
        return self.local.settle(request_id, used, about)

    def correct(self, name: str, corrections: Sequence[Correction]) -> asyncio.Future[list[Charged] | None]:
        """Of what this gateway has charged; others correct theirs. The vault hears of it, of accounts at rest too."""
        try:
            leases = self._keep(corrections)
        except Refused as refused:
            answer: asyncio.Future[list[Charged] | None] = asyncio.get_running_loop().create_future()
            answer.set_exception(refused)
            return answer
        answer = self.local.correct(name, corrections)
        for lease in leases:
            lease.renew()  # which reads the accounts in a later step
        return answer

    def _keep(self, corrections: Sequence[Correction]) -> list[Lease]:
        """Have leases know of the accounts that will be corrected, also over a crash; which leases those are.

        The register is written on the event loop: it takes milliseconds, seldom, and the correction must come after it.
        """
        leases: dict[str, Lease] = {}
        new = []
        for entry in told_of(corrections, self._tag_of, self._wall()):
            lease = leases[entry.tag] = self._lease(entry.tag)
            if not lease.keep(entry.place):
                new.append(entry)
        if new:
            self.register.note_now(new)
        for entry in new:
            leases[entry.tag].restore(entry)
        return list(leases.values())

    def audit(self) -> Awaitable[list[str]]:
        return self.local.audit()

    # ---------------------------------------------------------------- of rights

    def open(
        self,
        request_id: str,
        lines: Sequence[Line],
        price: Price | None,
        want: Load,
        least: Load,
        alone: Load | None = None,
    ) -> Awaitable[Grant]:
        asked = Open(request_id, Lines.of(lines), price, want, least, alone)
        lease = self.leases.get(asked.lines.tag) or self._lease(asked.lines.tag)
        return LeasedOpening(self, lease, asked, self._attempt(lease, asked, eager=True))

    def _attempt(self, lease: Lease, asked: Open, *, eager: bool) -> Opening:
        return self.local.opening(asked.request_id, LeasedOpen(asked, self._view(lease, asked.lines), eager))

    async def opened_at_last(self, lease: Lease, asked: Open, short: Short) -> Grant:
        """Open a hold for which rights lacked: ask the vault, until there are enough or asking is in vain."""
        enough, eager, hoped = asked.alone or asked.least, True, False
        for tries in count():
            self._refuse_at_once(asked, lease, short)
            pairs = zip(short.places, asked.lines, strict=True)
            news = [learn(lease, at, line) for at, line in pairs]
            last = tries >= TRIES_MAX
            if last or (not any(news) and self._in_vain(lease, short, enough, tries, eager=eager)):
                if last or hoped or not await self._hopes(lease, short, enough):
                    lease.rest(short.places)
                    raise self._refusal(lease, asked, short) from None
                hoped = True
            remember(lease, short.places, asked.lines)
            await lease.ask(wishes(short, asked.want), MORE**tries)
            eager = self._goes_well(lease, asked.lines, tries)
            try:
                return await self._attempt(lease, asked, eager=eager)
            except Short as again:
                short = again
        raise AssertionError("it counts for ever")

    def holds(self, lease: Lease, lines: Lines, grant: Grant) -> None:
        """A request has its hold, so its lease must know its accounts."""
        lease = self.leases.setdefault(lines.tag, lease)  # it may have been let go of
        if lines.known_to != (lease.age, grant.cells):
            with suppress(Refused):  # what only records is told when there is room
                remember(lease, grant.places, lines)
                lines.known_to = lease.age, grant.cells

    def _refuse_at_once(self, asked: Open, lease: Lease, short: Short) -> None:
        """Learn nothing of limits that were not heard of where another one, which was, can never pay.

        Else a key that has nothing left could have a gateway know of any number of sessions.
        """
        if short.heard or not lease.valid or self._clock() - lease.heard_s >= 2 * RENEW_S:
            return
        found = zip(short.heard_of, short.whole, strict=True)
        parts = [part if heard else Part(part.unit, Account(UNLIMITED)) for heard, part in found]
        lacks = lacking(parts, asked.alone or asked.least, asked.price, ever=True)
        if lacks is not None:
            raise asked.refusal(parts, lacks, self._wall()) from None

    def _in_vain(self, lease: Lease, short: Short, enough: Load, tries: int, *, eager: bool) -> bool:
        """Whether the vault need not be asked, or not again: what it said lately was no, or nothing."""
        if tries:
            return not eager or (short.heard and short.lacks is not None)
        now_s = self._clock()
        lately = short.lacks is not None and now_s - lease.asked_s < FRUITLESS_S
        spent = now_s - lease.heard_s < 2 * RENEW_S and lacking(short.whole, enough, short.price, ever=True) is not None
        return short.heard and lease.valid and (lately or spent)

    async def _hopes(self, lease: Lease, short: Short, enough: Load) -> bool:
        """Wait a moment where other gateways have what lacks: they may need it less."""
        elsewhere = [
            whole.account.held > mine.account.held for whole, mine in zip(short.whole, short.mine, strict=True)
        ]
        never = lacking(short.whole, enough, short.price, ever=True) is not None
        if not (short.heard and lease.valid and any(elsewhere)) or never or lease.hoping >= HOPING_MAX:
            return False
        lease.hoping += 1
        try:
            await asyncio.sleep(self._hope_s)
        finally:
            lease.hoping -= 1
        return True

    def _goes_well(self, lease: Lease, lines: Lines, tries: int) -> bool:
        """Whether after this exchange another one might bring more; else what there is has to do."""
        return tries + 1 < TRIES_MAX and not self._down and not lease.quiet and bool(self._view(lease, lines))

    def _refusal(self, lease: Lease, asked: Open, short: Short) -> Refused:
        """Name the limit that cannot pay by the whole budget; where it could, what stands between."""
        never = lacking(short.whole, asked.alone or asked.least, asked.price, ever=True)
        if short.heard and (never is not None or not (self._down or lease.quiet)):
            lacks = short.lacks if never is None else never
            return asked.refusal(short.whole, lacks or 0, self._wall())
        return unavailable(lease)

    def extend(self, request_id: str, want: Load, least: int) -> asyncio.Future[More]:
        lines, asked = self.local.under(request_id), Extend(request_id, want, least)
        if lines is None:
            return self.local.step(asked)
        answer: asyncio.Future[More] = asyncio.get_running_loop().create_future()
        first = self.local.step(LeasedExtend(asked, self._view(self.leases.get(lines.tag), lines), eager=True))
        first.add_done_callback(lambda got: self._extended(asked, lines, got, answer))
        return answer

    def _extended(self, asked: Extend, lines: Lines, got: asyncio.Future[More], answer: asyncio.Future[More]) -> None:
        error = got.exception()
        if isinstance(error, Short):
            self._work(self._extend_again(asked, lines, error, answer))
        elif not answer.done():
            answer.set_exception(error) if error else answer.set_result(got.result())

    async def _extend_again(self, asked: Extend, lines: Lines, short: Short, answer: asyncio.Future[More]) -> None:
        try:
            more = await self._extended_at_last(asked, lines, short)
        except Exception as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(more)

    async def _extended_at_last(self, asked: Extend, lines: Lines, short: Short) -> More:
        lease, least, eager = self._lease(lines.tag), Load(asked.want.input, asked.least), True
        for tries in range(TRIES_MAX + 1):
            if self._in_vain(lease, short, least, tries, eager=eager):
                break
            remember(lease, short.places, lines)
            await lease.ask(wishes(short, asked.want), MORE**tries)
            eager = self._goes_well(lease, lines, tries)
            try:
                return await self.local.step(LeasedExtend(asked, self._view(lease, lines), eager))
            except Short as again:
                short = again
        if not short.heard or (self._down and short.lacks is None):
            raise unavailable(lease)
        # Where the whole budget has some, others were quicker: it is worth another try.
        return More(None, 1 if short.lacks is None else hoped_for(short.whole, least, short.price))

    def relimit(self, line: Line) -> asyncio.Future[bool]:
        """An account that no lease knows has no rights: whoever needs some tells the vault of the limit first."""
        answer = self.local.step(LeasedRelimit(line))
        at = place(*line, self._wall())
        for lease in [one for one in self.leases.values() if at in one.known]:
            learn(lease, at, line)
            lease.renew()
        return answer

    def balance(self, scope: str, limit: Limit) -> Awaitable[Account]:
        at = place(scope, limit, self._wall())
        heard = next((one.heard for one in self.leases.values() if at in one.heard), {})
        return self.local.step(Look(scope, limit, heard))

    # ---------------------------------------------------------------- leases

    async def begin(self, tag_of: Callable[[str], str | None]) -> None:
        """Tell the vault what this gateway knew when it ended; to be awaited before anything is served.

        tag_of: under which tag the accounts of a scope are; None where nobody can ask for them any more.
        Raises Refused (BOOKS) where the ledger has what was spent before it shared, and the vault cannot be told:
        others would spend that again.
        """
        self._tag_of = tag_of
        for entry in self.register.entries():
            self._lease(entry.tag).restore(entry)
        if not self.register.begun:
            await self._take_over()
        await self.local.step(Disown())
        if not self.register.begun:
            for lease in list(self.leases.values()):
                await lease.renew()
                if not lease.valid:
                    detail = "what was spent so far has to be told to the vault first, and it cannot be: "
                    raise Refused(Reason.BOOKS, detail + (lease.fault or self._down or "see the log"))
            await self.register.begin()
        self.look()

    async def _take_over(self) -> None:
        """Remember what limits the accounts of a gateway that shared with nobody had: from then on they are rights."""
        known = {at for lease in self.leases.values() for at in lease.known}  # of a try that failed
        for at, limit in await self.local.step(Limits()):
            if at not in known and (tag := self._tag_of(at.scope)) is not None:
                amount = None if limit == UNLIMITED else min(limit, AMOUNT_MAX)
                self._lease(tag).restore(Entry(at, tag, amount, 0.0), noted=False)
        for lease in self.leases.values():
            await lease.note(lease.known)

    async def run(self) -> None:
        """Renew leases, and see to those that are over; until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self.look()
            except Exception as error:  # a bug must not be the end of all leases
                log.error("leases.fault", exc_info=error)

    def look(self) -> None:
        """Look once; nothing is waited for."""
        now_s = self._clock()
        busy = sum(one.renewing for one in self.leases.values())
        over: dict[str, bool] = {}  # tags; whether also of those that use up what they have
        for tag, lease in list(self.leases.items()):
            if not lease.known:
                if now_s - max(lease.made_s, lease.began_s) > IDLE_S:
                    del self.leases[tag]
                continue
            due_s = lease.began_s + (LOOK_S if lease.scarce else RENEW_S) - LOOK_S / 2
            if now_s >= due_s and not (lease.renewing or lease.fenced) and busy < RENEWALS_MAX:
                lease.renew()
                busy += 1
            if not lease.valid and lease.limited:
                over[tag] = bool(lease.fault)

        def ends(lines: Sequence[Line]) -> bool:
            known = Lines.of(lines)
            return known.tag in over and known.limited and (over[known.tag] or not self._goes_on(known))

        if over and (ended := self.on_lapse(ends)):
            log.warning("leases.over", tags=len(over), requests_ended=ended)
        if self._gone is not None:
            self._gone.look(self.leases)

    def not_ready(self) -> list[str]:
        """What keeps this gateway from spending, for operators."""
        faults = {f"the vault refuses this gateway: {one.fault}" for one in self.leases.values() if one.fault}
        faults |= self._gone.faults if self._gone is not None else set()
        down = self._down and any(one.limited and not one.valid for one in self.leases.values())
        return sorted(faults)[:1] + (["the vault cannot be reached"] if down else [])

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._gone is not None:
            await self._gone.close()
        ends = [asyncio.ensure_future(one.end()) for one in self.leases.values() if one.known and not one.fenced]
        if ends:
            await asyncio.wait(ends, timeout=END_S_MAX)
        if self._one_off is not None and self.serves:
            await self._one_off.leave(self.leases)
        for work in (*ends, *self._works):
            work.cancel()
        await self.local.close()
        await self.register.close()

    def _lease(self, tag: str) -> Lease:
        lease = self.leases.get(tag)
        if lease is None:
            if len(self.leases) >= LEASES_MAX:
                raise Refused(Reason.BOOKS, "too many budgets are in use at once", retry_after_s=AGAIN_S)
            args = self.local, self.vault, self.register, self._clock, self._on_vault
            lease = self.leases[tag] = Lease(tag, *args)
            if self._one_off is not None:
                self._one_off.note(tag)
        return lease

    def _view(self, lease: Lease | None, lines: Lines) -> Heard:
        """What a request may know of its limits; nothing where it may not spend."""
        if lease is None:
            return NOTHING_HEARD
        if lease.valid_until > self._clock() or (not lease.fault and self._goes_on(lines)):
            return lease.heard
        return NOTHING_HEARD

    def _on_vault(self, why: str) -> None:
        """One line for each time that it goes or comes, not for each exchange."""
        if why and not self._down:
            log.error("vault.down", why=why)
        elif self._down and not why:
            log.warning("vault.back")
        self._down = why

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)


class LeasedOpening(Awaitable[Grant]):
    """A grant of rights on its way to its caller. Where there are enough, as there mostly are, nothing else waits."""

    __slots__ = ("_asked", "_lease", "_ledger", "_opening")

    def __init__(self, ledger: LeasedLedger, lease: Lease, asked: Open, opening: Opening) -> None:
        self._ledger, self._lease, self._asked, self._opening = ledger, lease, asked, opening

    def __await__(self) -> Generator[Any, None, Grant]:
        try:
            grant = yield from self._opening.__await__()
        except Short as short:
            grant = yield from self._ledger.opened_at_last(self._lease, self._asked, short).__await__()
        self._ledger.holds(self._lease, self._asked.lines, grant)
        return grant
