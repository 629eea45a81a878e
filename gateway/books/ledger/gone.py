"""Gateways that are gone: those that live write them off, so that they keep nobody from a place under a tag.

A tag hears only of what is used under it, so a gateway that it has not heard of for long may live. Each therefore says
under one more tag, PRESENT, that it is there, and is gone only where that has not heard of it either.

Whoever comes to the vault for the first time, or has not been heard of itself lately, waits until all that live have
had the time to say so: the vault may have been away for longer than anybody may be, its clock may have been set
forward, or it has lost what it was told. One that never said that it is there may be of an older Holdfast, or find no
place to say it: it is gone only for who has been there itself for as long as nobody may be unheard, with places left
all the while.
"""

import asyncio
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import islice

import structlog

from gateway.books.ledger.lease import Lease
from gateway.books.ledger.register import Register
from gateway.books.vault.account import GATEWAYS_MAX
from gateway.books.vault.contract import Crowded, Fenced, Heard, Refusal, Vault, VaultDown

log = structlog.get_logger()

PRESENT = "gateways"  # no org's tag is called so: see `guards.scope.tag`
FIRST_S = 5.0  # until it says for the first time that it is there: a start that fails should not have
LOOK_S = 60.0  # between two looks, at least; at most twice that, drawn anew each time
CROWDED_S = 10.0  # the same where somebody waits for a place
UNSAID_S = 3 * LOOK_S  # in which a gateway that lives has said that it is there, and some more
SETTLED_S = 4 * LOOK_S  # in which all that live have, also where they were told late that the vault is back
TAGS_MAX = 64  # in one look; the others have their turn in later ones
WRITE_OFFS_MAX = 16  # in one look; each reads all accounts of a tag


class Gone:
    """Says that this gateway is there, and writes off those that were not heard of for `after_s`; None: nobody.

    By the vault's clock, which tells how long ago that was; clock: monotonic seconds, by which it is looked.
    fenced: this gateway was written off itself.
    """

    def __init__(
        self, vault: Vault, register: Register, after_s: float | None, clock: Callable[[], float],
        rng: random.Random,
    ) -> None:  # fmt: skip
        self.fenced = False
        self._vault, self._register, self._after_s = vault, register, after_s
        self._clock, self._rng = clock, rng
        self._due_s, self._crowded_due_s = clock() + FIRST_S, clock()
        self._settled_s = math.inf  # from then on those that live have said that they are there
        self._listed_s = math.inf  # and from then on also those that had not said it before
        self._said = False  # that it is there
        self._before: tuple[float, Mapping[str, float]] | None = None  # when it looked last, and `ago_s` then
        self._begun: tuple[str, str] | None = None  # under which tag it may have written off whom by half
        self._last = ""  # of the tags that were looked at
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a look is under way."""
        return self._task is not None and not self._task.done()

    @property
    def faults(self) -> set[str]:
        """What keeps this gateway from spending, for operators."""
        return {"this gateway was written off, and needs another data directory"} if self.fenced else set()

    def look(self, leases: Mapping[str, Lease]) -> None:
        """Look once, where it is time for that; nothing is waited for. leases: of this gateway, by tag."""
        if self.busy or self.fenced:
            return
        crowded = [] if self._after_s is None else [tag for tag, lease in leases.items() if lease.crowded]
        now_s = self._clock()
        if crowded and now_s >= self._crowded_due_s:
            self._crowded_due_s = now_s + CROWDED_S * self._rng.uniform(1, 2)
            page = sorted(crowded)[:TAGS_MAX]
        elif now_s >= self._due_s:
            self._due_s = now_s + LOOK_S * self._rng.uniform(1, 2)
            page = self._page(sorted(tag for tag, lease in leases.items() if lease.valid))
        else:
            return
        self._task = asyncio.ensure_future(self._look(page))

    async def close(self) -> None:
        """End a look that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _page(self, tags: list[str]) -> list[str]:
        """Those whose turn it is."""
        first = bisect_right(tags, self._last)
        page = list(islice((*tags[first:], *tags[:first]), TAGS_MAX))
        self._last = page[-1] if page else ""
        return page

    async def _look(self, page: list[str]) -> None:
        try:
            there = await self._there()
            if there is None or self._after_s is None:
                return
            left = WRITE_OFFS_MAX
            for tag in dict.fromkeys((*(self._begun or ())[:1], *page, PRESENT)):
                left -= await self._write_off(tag, there, self._after_s, left)
        except VaultDown:
            pass  # the leases say so; at a later look
        except Exception as error:  # a bug must not be the end of the leases
            log.error("gateways.fault", exc_info=error)

    async def _there(self) -> Mapping[str, Heard] | None:
        """Who has said that it is there, and when; None where it cannot be gone by that now. Says so itself."""
        heard = {one.name: one for one in await self._vault.heard(PRESENT)}
        if self._interrupted(heard):
            self._settled_s = math.inf
        name = self._register.name
        full = len({name, *(one.name for one in heard.values() if not one.fenced)}) >= GATEWAYS_MAX
        answer = await self._vault.exchange(PRESENT, self._register.me(), (), False)
        if isinstance(answer, Fenced):
            self.fenced = True
            log.error("gateway.was_written_off", why=answer.why)
        if isinstance(answer, Refusal) and not isinstance(answer, Crowded):
            return None
        first, self._said = not self._said, not isinstance(answer, Refusal)
        self._settle(anew=self._settled_s == math.inf or (first and self._said), full=full or not self._said)
        return heard

    def _interrupted(self, heard: Mapping[str, Heard]) -> bool:
        """Whether what the vault says of times, or of who is there, may not be what was.

        There are two cases. Whoever has said that it is there sees it by what the vault knows of that. Who found no
        place sees it by how long ago others spoke: that may not grow by more than the time that went by.
        """
        now_s, mine, before = self._clock(), heard.get(self._register.name), self._before
        self._before = now_s, {one.name: one.ago_s for one in heard.values()}
        if self._said:
            return mine is None or mine.ago_s > UNSAID_S
        if before is None:
            return False
        passed_s, ago = now_s - before[0], before[1]
        jumped = any(one.ago_s - ago.get(one.name, one.ago_s) > passed_s + LOOK_S for one in heard.values())
        return passed_s > UNSAID_S or jumped

    def _settle(self, *, anew: bool, full: bool) -> None:
        """Wait until others have had the time to say that they are there. full: not all that live can."""
        now_s = self._clock()
        if anew:
            self._settled_s = now_s + SETTLED_S
        if anew or full:
            self._listed_s = now_s + SETTLED_S + (self._after_s or 0.0)

    async def _write_off(self, tag: str, there: Mapping[str, Heard], after_s: float, most: int) -> int:
        """Write off those that are gone, unheard for longest first, and finish what was begun; how many."""
        heard = await self._vault.heard(tag)
        gone = [one for one in heard if self._begun == (tag, one.name) or not one.fenced]
        gone = [one for one in gone if one.fenced or self._gone(one, there, after_s)]
        gone = sorted(gone, key=lambda one: (not one.fenced, -one.ago_s))[:most]
        for one in gone:
            self._begun = tag, one.name
            accounts = await self._vault.write_off(tag, one.name, after_s)
            self._begun = None
            if accounts is not None:
                told(tag, one.name, self._register.name, accounts, one.ago_s)
        return len(gone)

    def _gone(self, one: Heard, there: Mapping[str, Heard], after_s: float) -> bool:
        if one.name == self._register.name or one.ago_s < after_s:
            return False
        said, now_s = there.get(one.name), self._clock()
        if said is None:
            return now_s >= self._listed_s
        return said.fenced or (said.ago_s >= after_s and now_s >= self._settled_s)


def told(tag: str, name: str, by: str, accounts: int, unheard_s: float) -> None:
    """One line for each gateway that was written off under a tag. by: whom."""
    log.warning(
        "gateway.written_off", tag=tag, gateway=name, by=by, accounts=accounts, unheard_s=round(unheard_s, 1)
    )
