"""Gateways that are gone: those that live write them off, so that they keep nobody from a place under a tag.

A tag hears only of what is used under it, so a gateway that it has not heard of for long may live. Each therefore says
under one more tag, PRESENT, that it is there, and is gone only where that has not heard of it either.

Whoever begins, or has not been heard of itself lately, waits until all that live have had the time to say so: the vault
may have been away for longer than anybody may be, its clock may have been set forward, or it has lost what it was told.
"""

import asyncio
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
SETTLED_S = 4 * LOOK_S  # in which all that live have said that they are there, and some more
TAGS_MAX = 64  # in one look; the others have their turn in later ones
WRITE_OFFS_MAX = 16  # in one look; each reads all accounts of a tag


class Gone:
    """Says that this gateway is there, and writes off those that were not heard of for `after_s`.

    By the vault's clock, which tells how long ago that was; clock: monotonic seconds, by which it is looked.
    fenced: this gateway was written off itself.
    """

    def __init__(
        self, vault: Vault, register: Register, after_s: float, clock: Callable[[], float], rng: random.Random
    ) -> None:
        self.fenced = False
        self._vault, self._register, self._after_s = vault, register, after_s
        self._clock, self._rng = clock, rng
        self._due_s, self._crowded_due_s, self._wary_until_s = clock() + FIRST_S, clock(), clock()
        self._settled_s = clock() + SETTLED_S
        self._said = False  # that it is there
        self._full = False  # there is no place for all that would say so
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
        crowded = [tag for tag, lease in leases.items() if lease.crowded]
        now_s, urgent = self._clock(), bool(crowded)
        if crowded and now_s >= self._crowded_due_s:
            self._crowded_due_s = now_s + CROWDED_S * self._rng.uniform(1, 2)
            page = sorted(crowded)[:TAGS_MAX]
        elif now_s >= self._due_s:
            self._due_s = now_s + LOOK_S * self._rng.uniform(1, 2)
            urgent, page = False, self._page(sorted(tag for tag, lease in leases.items() if lease.valid))
        else:
            return
        self._task = asyncio.ensure_future(self._look(page, urgent=urgent))

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

    async def _look(self, page: list[str], *, urgent: bool) -> None:
        try:
            there = await self._there()
            if there is None or not (urgent or self._settled):
                return
            left = WRITE_OFFS_MAX
            for tag in (*page, PRESENT):
                left -= await self._write_off(tag, there, left)
        except VaultDown:
            pass  # the leases say so; at a later look
        except Exception as error:  # a bug must not be the end of the leases
            log.error("gateways.fault", exc_info=error)

    async def _there(self) -> Mapping[str, Heard] | None:
        """Who has said that it is there, and when; None where it cannot be gone by that now. Says so itself."""
        heard = {one.name: one for one in await self._vault.heard(PRESENT)}
        now_s, mine = self._clock(), heard.get(self._register.name)
        if self._said and (mine is None or mine.ago_s > 3 * LOOK_S):
            self._wary_until_s = self._settled_s = now_s + SETTLED_S
        self._full = sum(not one.fenced for one in heard.values()) >= GATEWAYS_MAX
        answer = await self._vault.exchange(PRESENT, self._register.me(), (), False)
        if not isinstance(answer, Refusal):
            self._said = True
        elif isinstance(answer, Fenced):
            self.fenced = True
            log.error("gateway.was_written_off", why=answer.why)
        refused = isinstance(answer, Refusal) and not isinstance(answer, Crowded)
        return None if refused or now_s < self._wary_until_s else heard

    async def _write_off(self, tag: str, there: Mapping[str, Heard], most: int) -> int:
        """Write off those that are gone, unheard for longest first; how many."""
        gone = [one for one in await self._vault.heard(tag) if self._gone(one, there)]
        gone = sorted(gone, key=lambda one: -one.ago_s)[:most]
        for one in gone:
            accounts = await self._vault.write_off(tag, one.name, self._after_s)
            if accounts is not None:
                told(tag, one.name, self._register.name, accounts, one.ago_s)
        return len(gone)

    @property
    def _settled(self) -> bool:
        return self._clock() >= self._settled_s

    def _gone(self, one: Heard, there: Mapping[str, Heard]) -> bool:
        if one.fenced or one.name == self._register.name or one.ago_s < self._after_s:
            return False
        said = there.get(one.name)
        if said is None:  # such as one of an older Holdfast
            return self._settled and not self._full
        return said.fenced or said.ago_s >= self._after_s


def told(tag: str, name: str, by: str, accounts: int, unheard_s: float) -> None:
    """One line for each gateway that was written off under a tag. by: whom."""
    log.warning(
        "gateway.written_off", tag=tag, gateway=name, by=by, accounts=accounts, unheard_s=round(unheard_s, 1)
    )
