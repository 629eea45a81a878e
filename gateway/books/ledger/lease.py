"""A lease: the rights that one gateway has under one tag, and until when it may spend them."""

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol, TypeVar

import structlog

from gateway.books.ledger.contract import Lines, Place
from gateway.books.ledger.leased_steps import Elsewhere, GiveBack, Heard, Numbers, Saying, TakeIn
from gateway.books.ledger.register import NOT_KNOWN, Entry, Register
from gateway.books.ledger.steps import Step
from gateway.books.vault.contract import LEASE_S, Claim, Closed, Crowded, Fenced, Given, Refusal, Vault, VaultDown
from guards.budget import UNLIMITED, Account, Line
from guards.escrow import AMOUNT_MAX
from guards.leasing import Use, cushion, refill
from guards.refusal import Reason, Refused
from guards.scope import made_up

log = structlog.get_logger()
T = TypeVar("T")

CLAIMS_MAX = 256  # in one exchange; more accounts take several
ACCOUNTS_MAX = 16_384  # under one tag, of which the vault is told; those at rest are let go of
WAITERS_MAX = 4096  # requests under one tag that wait for an exchange
WAIT_S = 3.0  # for an exchange, or two: one may be on its way already
IDLE_S = 30.0  # nothing used for so long, all rights go back, and the account is not spoken of any more


class Books(Protocol):
    """A gateway's own ledger, as far as a lease needs it."""

    def step(self, step: Step[T]) -> asyncio.Future[T]: ...


class Wish(NamedTuple):
    """What those that wait would have free of an account. need: less than that helps none; needs: helps all of them."""

    need: int
    want: int
    needs: int


Wishes = Mapping[Place, Wish]


class Known:
    """What a gateway knows of an account beside its own ledger.

    limit: the budget; None where it only records. as_of: see `guards.budget.Limit`, or NOT_KNOWN.
    """

    __slots__ = ("as_of", "fresh", "given", "held", "limit", "noted", "said_s", "share", "told", "use", "used_s")

    def __init__(self, limit: int | None, as_of: float, now_s: float, *, noted: bool = False) -> None:
        self.limit, self.as_of, self.noted = limit, as_of, noted
        self.fresh = not noted  # nothing of it was ever noted, nor told
        self.given: Given | None = None
        self.use: Use | None = None
        self.held, self.share = 0, 0
        self.used_s = now_s
        self.said_s = -math.inf  # when it was told last
        self.told: tuple[int, int] | None = None  # what rights it gave, for what spent; None while it may give others


class Round:
    """What is to be asked for next, and all that wait for it."""

    def __init__(self) -> None:
        self.wishes: dict[Place, Wish] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting = 0

    def end(self) -> None:
        """It was asked for, however that went."""
        if not self.done.done():
            self.done.set_result(None)

    def add(self, wishes: Wishes) -> None:
        """Have it ask for this too: as much as all want, and what one of them can do something with, at least."""
        for at, wish in wishes.items():
            known = self.wishes.get(at)
            if known is not None:
                wish = Wish(min(wish.need, known.need), wish.want + known.want, wish.needs + known.needs)
            self.wishes[at] = wish


class Lease:
    """Exchanges with the vault for one tag, one after the other; whoever lacks something meanwhile waits for the next.

    clock: monotonic seconds. made_s: by it.
    on_vault: told after each exchange why there was none; "" if there was.
    known: the accounts of which the vault is told; age: another one each time that some of them are forgotten.
    fault: why nothing may be spent, whatever the time; "" else.
    heard_s: when the vault was last heard; asked_s: and asked for more; began_s: when all accounts were told.
    valid_until: rights may be spent until then.
    crowded: there is no place for this gateway until another one is written off.
    scarce: others may come to lack what this gateway has, so that it should hear of that soon.
    hoping: requests that wait for what others may give back.
    """

    def __init__(
        self,
        tag: str,
        books: Books,
        vault: Vault,
        register: Register,
        clock: Callable[[], float],
        on_vault: Callable[[str], None],
    ) -> None:
        self.tag = tag
        self._books, self._vault, self._register = books, vault, register
        self._clock, self._on_vault = clock, on_vault
        self.known: dict[Place, Known] = {}
        self.age = object()
        self.heard: Heard = {}
        self.fault = ""
        self.made_s = clock()
        self.valid_until = self.heard_s = self.asked_s = self.began_s = -math.inf
        self.fenced = self.crowded = self.quiet = self.scarce = False
        self.hoping = 0
        self._room = ACCOUNTS_MAX
        self._ending = False
        self._round: Round | None = None
        self._renewal: asyncio.Future[None] | None = None
        self._renewing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether an exchange is on its way."""
        return self._task is not None

    @property
    def renewing(self) -> bool:
        """Whether all accounts are being told, or are about to be."""
        return self._renewing or self._renewal is not None

    @property
    def valid(self) -> bool:
        """Whether rights may be spent now. A fault also ends the time in which they may be."""
        return self._clock() < self.valid_until

    @property
    def given_back(self) -> bool:
        """Whether the vault has all rights back, and knows of all accounts what was spent."""
        return not self.fenced and all(self._told(one) for one in self.known.values())

    @property
    def limited(self) -> bool:
        """Whether any of its accounts needs rights."""
        return any(one.limit is not None for one in self.known.values())

    def learn(self, at: Place, limit: int, as_of: float) -> bool:
        """Take in what an account's limit is, and since when (unix seconds); whether that is news.

        What is older than what is known is none; of two that are as old the last word holds. So nothing is lost when
        an account is let go of. Raises Refused for too many accounts.
        """
        amount = None if limit == UNLIMITED else min(limit, AMOUNT_MAX)
        known = self.known.get(at)
        if known is None:
            if len(self.known) >= self._room:
                raise Refused(Reason.BOOKS, "too many accounts are in use at once", retry_after_s=IDLE_S)
            self.known[at] = Known(amount, as_of, self._clock())
            return True
        if as_of < known.as_of or (as_of, amount) == (known.as_of, known.limit):
            return False
        known.limit, known.as_of, known.noted = amount, as_of, False
        if at in self.heard:
            self.heard = {**self.heard, at: self.heard[at]._replace(limit=limit)}
        return True

    def keep(self, at: Place) -> bool:
        """Keep an account in mind as if it were used now; whether it is known, and noted."""
        known = self.known.get(at)
        if known is not None:
            known.used_s = self._clock()
        return known is not None and known.noted

    def restore(self, entry: Entry, *, noted: bool = True) -> None:
        """Know of an account at least what was noted, however many those are."""
        if entry.place not in self.known:
            self.known[entry.place] = Known(entry.limit, entry.as_of, self._clock(), noted=noted)
            self._room += 1

    def rest(self, places: Iterable[Place]) -> None:
        """Let go soon of those of a refused request that its client has made up, where nothing of them is used."""
        for at in places:
            one = self.known.get(at) if made_up(at.scope) else None
            if one is not None and (one.use is None or not one.use.used):
                one.used_s = -math.inf

    async def ask(self, wishes: Wishes, times: int = 1) -> None:
        """Wait until the vault was asked for this, however that went. Raises Refused where too many wait.

        times: so many times as much is wanted, if the vault can spare it.
        """
        waiting = self._next()
        if waiting.waiting >= WAITERS_MAX:
            raise Refused(Reason.BOOKS, "too many requests wait for budget", retry_after_s=1.0)
        waiting.add({at: wish._replace(want=min(times * wish.want, AMOUNT_MAX)) for at, wish in wishes.items()})
        waiting.waiting += 1
        now_s = self._clock()
        for at, wish in wishes.items():
            if (known := self.known.get(at)) is not None:
                known.share, known.used_s = wish.want, now_s
        await asyncio.wait([waiting.done], timeout=WAIT_S)

    def renew(self) -> asyncio.Future[None]:
        """Say everything to the vault; the end of that."""
        if self._renewal is None:
            self._renewal = asyncio.get_running_loop().create_future()
            self._begin()
        return self._renewal

    async def end(self) -> None:
        """Give all rights back that are free, for good."""
        self._ending = True
        await asyncio.wait([self.renew()])

    async def note(self, page: Iterable[Place]) -> None:
        """What the vault hears of is remembered first: a later start has to tell it how that ended."""
        new = [Entry(at, self.tag, one.limit, one.as_of) for at in page if not (one := self.known[at]).noted]
        if new:
            await self._register.note(new)
            for entry in new:
                known = self.known[entry.place]
                known.fresh, known.noted = False, (known.limit, known.as_of) == (entry.limit, entry.as_of)

    def _next(self) -> Round:
        if self._round is None:
            self._round = Round()
            self._begin()
        return self._round

    def _begin(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._round is not None or self._renewal is not None:
            asked, renewal = self._round, self._renewal
            self._round = self._renewal = None
            self._renewing = renewal is not None
            try:
                if not self.fenced:
                    await self._exchange(asked, renew=renewal is not None)
            except Refused:
                pass  # the gateway's own files cannot be written, and say so themselves
            except Exception as error:  # a bug must not be the end of all exchanges
                log.error("lease.fault", tag=self.tag, exc_info=error)
            finally:
                self._renewing = False
                if asked is not None:
                    asked.end()
                if renewal is not None:
                    renewal.set_result(None)
        self._task = None

    async def _exchange(self, asked: Round | None, *, renew: bool) -> None:
        """Say all accounts, or where these are many those that are asked for, and take in what is given."""
        at_once = len(self.known) <= CLAIMS_MAX or not self.valid
        if asked is not None and not at_once:
            await self._asked(asked)
        if at_once or renew:
            await self._renew(asked.wishes if asked is not None and at_once else {})

    async def _asked(self, asked: Round) -> None:
        """Say the accounts that are asked for."""
        try:
            for page in pages(at for at in asked.wishes if at in self.known):
                if not await self._say(page, asked.wishes):
                    return
            self.asked_s = self.heard_s
        finally:
            asked.end()

    async def _renew(self, wishes: Wishes) -> None:
        """Say all accounts, those first that were not said for longest; who comes to ask meanwhile goes before."""
        self.began_s = self._clock()
        for at in [at for at, one in self.known.items() if one.fresh and at not in wishes and self._resting(at)]:
            del self.known[at]
            self.age = object()
        if not self.known:
            return
        self.scarce = False
        for number, page in enumerate(pages(sorted(self.known, key=lambda at: self.known[at].said_s))):
            meanwhile = self._round
            if number and meanwhile is not None and self.valid:
                self._round = None
                await self._asked(meanwhile)
            if not await self._say(page, wishes):
                return
            self.valid_until = LEASE_S + min(one.said_s for one in self.known.values() if one.given is not None)
        if wishes:
            self.asked_s = self.heard_s
        await self._let_go()

    def _resting(self, at: Place) -> bool:
        """Whether an account was not used for long, and nobody waits for it."""
        idle_s = self._clock() - self.known[at].used_s
        return idle_s > IDLE_S and (self._round is None or at not in self._round.wishes)

    async def _say(self, page: list[Place], wishes: Wishes) -> bool:
        await self.note(page)
        now_s = self._clock()
        sayings = tuple(self._saying(at, wishes, now_s) for at in page)
        corrected, stands = await self._books.step(Numbers(GiveBack(sayings)))
        said = [self._claim(one, account, wishes, now_s) for one, account in zip(sayings, stands, strict=True)]
        claims = [one._replace(corrected=corrected) for one in said]
        for at in page:
            self.known[at].told = None
        me = self._register.me()
        known = self.tag in self._register.tags
        try:
            answer = await self._vault.exchange(self.tag, me, claims, known)
        except VaultDown as down:
            self._on_vault(str(down) or "the vault cannot be reached")
            return False
        if isinstance(answer, Refusal):
            self._refused(answer)
            return False
        self._on_vault("")
        if self.fault:
            log.warning("lease.goes_on", tag=self.tag)
        if not known:  # before any of the rights are used
            await self._register.know(self.tag)
        self.fault, self.crowded, self.quiet, self.heard_s = "", False, answer.quiet, self._clock()
        given = zip(claims, answer.given, strict=True)
        await self._books.step(TakeIn(tuple((one.place, to.rights) for one, to in given if one.limit is not None)))
        news: dict[Place, Elsewhere] = {}
        for one, to in zip(claims, answer.given, strict=True):
            known_now = self.known[one.place]
            before, known_now.given, known_now.told = known_now.given, to, (to.rights, one.spent)
            known_now.said_s = now_s
            if one.limit is not None:
                self.scarce |= to.rights > one.spent and (to.wanted or to.free <= known_now.share)
                if to.wanted and not (before is not None and before.wanted):
                    self.renew()  # and give back what it can, at once
                gone = one.limit - to.free - to.rights - to.others
                news[one.place] = Elsewhere(one.limit, gone, to.others)
        self.heard = {**self.heard, **news}
        return True

    def _saying(self, at: Place, wishes: Wishes, now_s: float) -> Saying:
        known = self.known[at]
        if known.limit is None:
            return Saying(at, None)
        wish = wishes.get(at, Wish(0, 0, 0))
        given = known.given
        unleased = UNLIMITED if given is None else given.free
        if self._ending or (now_s - known.used_s > IDLE_S and at not in wishes):
            return Saying(at, known.limit, wanted=True)
        return Saying(
            at, known.limit, self._cushion(known, given), wish.want, unleased,
            given is not None and given.wanted,
        )  # fmt: skip

    def _cushion(self, known: Known, given: Given | None) -> int:
        if known.use is None or given is None or given.wanted:
            return 0
        return cushion(known.use.per_s, known.share, max(0, given.rights - known.use.used) + given.free)

    def _claim(self, saying: Saying, account: Account, wishes: Wishes, now_s: float) -> Claim:
        at, limit, cushioned, *_, wanted = saying
        known, used = self.known[at], account.spent + account.held
        if (known.use is not None and known.use.used != used) or account.held:
            known.used_s = now_s
        known.use = Use(used, now_s) if known.use is None else known.use.seen(used, now_s)
        known.held = account.held
        if limit is None or known.as_of == NOT_KNOWN:
            return Claim(at, None, known.as_of, used, account.spent)
        if at not in wishes:
            want = 0 if wanted else refill(account.free, cushioned)
            return Claim(at, limit, known.as_of, account.limit, account.spent, want)
        wish = wishes[at]
        need, want, needs = (max(0, amount - account.free) for amount in wish)
        if need and known.given is not None:  # for all that wait, or else for as many as half of what there is helps
            free = known.given.free
            need = max(need, needs if needs <= free else free // 2)
            want = max(want, need)
        return Claim(at, limit, known.as_of, account.limit, account.spent, want + cushioned if want else 0, need)

    def _refused(self, answer: Refusal) -> None:
        """What was stale is told again by the next exchange, and who found no place asks again; the others stop all
        spending, until the vault goes on."""
        self.crowded = isinstance(answer, Crowded)
        if isinstance(answer, Fenced | Closed):
            if not self.fault:
                log.error("lease.refused", tag=self.tag, why=answer.why, fenced=isinstance(answer, Fenced))
            self.fault, self.fenced = answer.why, isinstance(answer, Fenced)
            self.valid_until = -math.inf
            for one in self.known.values():
                one.said_s = -math.inf
            self._on_vault("")
        else:
            self._on_vault(answer.why)

    async def _let_go(self) -> None:
        """Forget accounts at rest of which the vault has all rights back, and knows what was spent."""
        resting = [at for at, one in self.known.items() if self._told(one) and self._resting(at)]
        if resting:
            tag = None if len(resting) < len(self.known) else self.tag
            await self._register.forget(resting, tag)
            gone = []
            for at in resting:
                if self._resting(at):
                    del self.known[at]
                    self.age = object()
                    gone.append(at)
                else:
                    self.known[at].noted = False  # it was used again meanwhile
            self.heard = {at: one for at, one in self.heard.items() if at not in set(gone)}

    def _told(self, known: Known) -> bool:
        return known.use is not None and not known.held and known.told == (known.use.used, known.use.used)


def remember(lease: Lease, places: Iterable[Place], lines: Lines) -> None:
    """Have a lease know of a request's accounts, which it may have let go of, and of limits newer than it knows.

    Raises Refused for too many accounts.
    """
    for at, line in zip(places, lines, strict=True):
        known = lease.known.get(at)
        if known is None or known.as_of < line.limit.as_of:
            learn(lease, at, line)


def learn(lease: Lease, at: Place, line: Line) -> bool:
    """Have a lease take a limit in; whether it is news to it."""
    return lease.learn(at, line.limit.within(at.window), line.limit.as_of)


def pages(places: Iterable[Place]) -> list[list[Place]]:
    """Accounts, as one exchange each can take them."""
    every = list(places)
    return [every[first : first + CLAIMS_MAX] for first in range(0, len(every), CLAIMS_MAX)]
