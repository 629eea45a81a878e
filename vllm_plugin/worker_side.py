"""The worker's half: seals pages when they are full, and looks at them when it is told, or has time.

It looks after the forward pass and not before: a page that is intact then was intact when it was read, while one that
was intact before may have changed on the way. No token leaves before the scheduler has heard of it. Only the page that
a request is filling is looked at before, as the forward pass itself writes to it.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence, Set
from itertools import islice
from typing import Any, NamedTuple, Protocol

from vllm_plugin import logs
from vllm_plugin.digests import Row
from vllm_plugin.exchange import Exchange
from vllm_plugin.known import Known
from vllm_plugin.loads import Loads
from vllm_plugin.page import Kind, Lost, Orders, Page, Report, Where
from vllm_plugin.scrub import Scrubber
from vllm_plugin.whose import NOBODY

log = logs.logger("worker")

SLICE_PAGES = 64  # that a scrub between two steps looks at before it looks at the clock
ROUNDS_MAX = 8  # scrubs at once: of several API servers, each of which has one
SEARCHED_MAX = 4096  # pages that a bad one is compared with, to tell a misplaced page from a changed one
CREDIT_S_MAX = 0.05  # for scrubbing, that steps may save up while there is nothing to scrub
MARK_EVERY_S, MARKS_MAX = 1.0, 4096  # of time, so that it can be told which step was when; before them is any time


class Digesting(Protocol):
    """What digests.py does."""

    model: bytes

    def sums(self, blocks: Sequence[int]) -> list[Row]: ...
    def of(self, page: Page, row: Row) -> bytes: ...
    def use_model(self, model: bytes) -> None: ...


class Model(Protocol):
    """What served.py does."""

    id: bytes
    settled: bool

    def look(self, again: bool = False) -> bool: ...
    def watch(self) -> float | None: ...


class Sealed(NamedTuple):
    """A page as it was when it was written. good_step: the last step after which it still was."""

    page: Page
    digest: bytes
    good_step: int


class Scrubbed(NamedTuple):
    """Of a part of a scrub. left: pages that it has not come to yet."""

    checked: int
    corrupt: int
    left: int


class WorkerHalf:
    """One for each worker. scrub_share, scrub_floor_s: see settings.py. count: told (name, how many), for metrics."""

    def __init__(
        self,
        *,
        scrub_share: float | None,
        scrub_floor_s: float,
        count: Callable[[str, float], None] = lambda name, number: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._share, self._floor_s = scrub_share, scrub_floor_s
        self._count, self._clock = count, clock
        self._scrubber = Scrubber()
        self._known = Known()
        self._sealed: dict[int, Sealed] = {}
        self._tails: dict[str, Sealed] = {}
        self._lost: list[Lost] = []
        self._began_s = self._credit_s = self._step_s = 0.0
        self._step = 0
        self._rounds: OrderedDict[str, float] = OrderedDict()
        self._unsaved: dict[int, Any] = {}
        self._loaded: set[Page] = set()
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS_MAX)
        self._void = False
        self.digests: Digesting | None = None
        self.exchange: Exchange | None = None
        self.loads: Loads | None = None
        self.model: Model | None = None

    def before(self, orders: Orders) -> None:
        """Before the forward pass. Reads the weights, where they may be others."""
        assert self.model is not None
        for block in orders.withdraw:
            self._withdraw(block)
        self._void = self.model.look(orders.reread)
        if self._void:
            self._forget_all()
        began_s = self._clock()
        self._step_s, self._began_s = began_s - self._began_s, began_s
        if not self._marks or self._began_s - self._marks[-1][0] >= MARK_EVERY_S:
            self._marks.append((self._began_s, orders.step))
        for block in orders.forget:
            self._forget(block)
        for request_id in orders.release:
            self._scrubber.release(request_id)
            self._tails.pop(request_id, None)
        for request_id, blocks in orders.hold:
            self._scrubber.hold(request_id, blocks)
        self._look_at_tails(orders.step)

    def load(self, orders: Orders) -> None:
        """Bring some of what requests wait for. It is not read before the scheduler knows what became of it."""
        if self.loads is None:
            return
        for request_id in orders.release:
            self.loads.stop(request_id)
        for load in orders.load:
            self.loads.add(load)
        if self._void:  # it was planned for another model, and is computed instead
            self.loads.stop_all()
        if not self.loads:
            return
        for page, digest, kind in self.loads.place(computes=orders.computes, step_s=self._step_s):
            if kind is None:
                self._keep(page, digest, orders.step)
                self._remember(orders, page, digest)
                self._loaded.add(page)
            else:
                self._lose(page, kind, Where.LOAD)
        self.loads.over()
        self._count("pages_missed", self.loads.missed())

    def brought(self) -> set[str]:
        """The requests that wait no more, for better or worse; once."""
        return self.loads.brought() if self.loads is not None else set()

    def not_brought(self) -> set[int]:
        """The blocks that do not hold what was to be loaded; once."""
        return self.loads.not_brought() if self.loads is not None else set()

    def seal(self, orders: Orders) -> None:
        """After it: what was filled, and what is being filled. Nothing, where another model had a part in it."""
        assert self.digests is not None
        if self._void:
            return
        tails = {tail.request_id: tail.page for tail in orders.tails}
        rows = iter(self.digests.sums([page.block for page in (*orders.seal, *tails.values())]))
        sealed = [(page, self.digests.of(page, next(rows))) for page in orders.seal]
        for page, digest in sealed:
            self._keep(page, digest, orders.step)
            self._remember(orders, page, digest)
        if self.exchange is not None:
            # A step later: by then it is known whether they were computed from what was intact.
            self.exchange.save(list(self._unsaved.values()), self._clock())
            self.exchange.sweep(self.digests.model)
            self._unsaved = {
                page.block: self.exchange.copy(page, digest, orders.whose.get(page.block, NOBODY))
                for page, digest in sealed if self._is_kept(page, orders)
            }
        full = {page.block for page in orders.seal}
        # Where only some are ordered, nobody says which of the others were written on.
        still = self._tails.items() if self._share is None else ()
        self._tails = {name: tail for name, tail in still if tail.page.block not in full}
        for request_id, page in tails.items():
            self._tails[request_id] = Sealed(page, self.digests.of(page, next(rows)), orders.step)
        self._count("pages_sealed", len(orders.seal))

    def check(self, orders: Orders) -> Report:
        """After that: what the gate asks for, and what there is time for."""
        assert self.digests is not None
        assert self.model is not None
        differs_since_s = None if self._void else self.model.watch()
        if differs_since_s is not None:
            self._forget_all()
            if self.exchange is not None:
                self.exchange.take_back(differs_since_s)
        if self._void or differs_since_s is not None:
            return self._all_is_void(orders.step, differs_since_s)
        started_s = self._clock()
        asked = {page.block for page in (*orders.brought, *orders.check)}
        scrubbed = self._to_scrub(started_s, asked.union(page.block for page in orders.seal))
        known = {lost.page for lost in self._lost}  # found by a scrub since the last step, and reported with this one
        pages = [(page, Where.GATE) for page in orders.check if page not in known]
        pages += [(self._sealed[block].page, Where.SCRUB) for block in scrubbed]
        rows = self.digests.sums([page.block for page in (*orders.brought, *(page for page, _ in pages))])
        count = len(orders.brought)
        strange = self._take_in(orders, rows[:count])
        seen = [(page, where, row) for (page, where), row in zip(pages, rows[count:], strict=True)
                if page.block not in strange]  # fmt: skip
        for page, _, row in seen:
            self._take_in_hit(page, row, orders.step)
        intact = []
        wrong = [self._wrong(page, row) for page, _, row in seen]  # before any is forgotten
        judged = sorted(zip(seen, wrong, strict=True), key=lambda one: one[1] is not None)  # a block may be of both
        for (page, where, _), kind in judged:
            if kind:
                self._lose(page, kind, where)
            else:
                self._seen(page.block, orders.step)
                intact += [page] if where == Where.GATE else []
        now_s = self._clock()
        self._scrubber.cost(len(rows), now_s - started_s)
        self._credit_s -= (now_s - started_s) * len(scrubbed) / max(1, len(rows))
        self._count("pages_verified", len(orders.check))
        self._count("pages_scrubbed", len(scrubbed))
        lost, self._lost = tuple(self._lost), []
        loaded, self._loaded = frozenset(self._loaded), set()
        self._step = orders.step
        return Report(orders.step, self.model.id, frozenset(intact), lost, loaded, self.model.settled)

    def scrub_age_s(self) -> float:
        """How long ago the page was looked at that was not for the longest time: a round of the scrubber."""
        return self._scrubber.age_s(self._clock())

    # ---- between two steps, when somebody asks

    def resident(self) -> int:
        """How many pages are here and sealed."""
        return len(self._sealed)

    def scrub(self, name: str, slice_s: float, given_up: Collection[int] = ()) -> Scrubbed:
        """A part of a scrub of all pages that were here when it began: of those not looked at since, as many as so long
        allows. What is bad is reported with the next step.

        name: of the scrub, which begins when it is heard of for the first time; the last ROUNDS_MAX are remembered.
        given_up: blocks that are left alone.
        """
        started_s = self._clock()
        since_s = self._rounds.setdefault(name, started_s)
        while len(self._rounds) > ROUNDS_MAX:
            self._rounds.popitem(last=False)
        left = self._scrubber.unseen(since_s, set(given_up))
        checked = corrupt = 0
        while checked < len(left) and (not checked or self._clock() - started_s < slice_s):
            blocks = left[checked : checked + SLICE_PAGES]
            corrupt += self._look_at(blocks)
            checked += len(blocks)
        self._scrubber.cost(checked, self._clock() - started_s)
        self._count("pages_scrubbed", checked)
        return Scrubbed(checked, corrupt, len(left) - checked)

    def _look_at(self, blocks: Sequence[int]) -> int:
        """Returns how many of them are bad."""
        assert self.digests is not None
        pages = [self._sealed[block].page for block in blocks]
        rows = self.digests.sums(blocks)
        wrong = [self._wrong(page, row) for page, row in zip(pages, rows, strict=True)]  # before any is forgotten
        for page, kind in zip(pages, wrong, strict=True):
            if kind:
                self._lose(page, kind, Where.SCRUB)
            else:
                sealed = self._sealed[page.block]
                self._keep(page, sealed.digest, max(sealed.good_step, self._step))
        return len(wrong) - wrong.count(None)

    # ---- leaves

    def _to_scrub(self, now_s: float, skip: Set[int]) -> list[int]:
        """Each step brings its share of time; what a look takes beyond that is owed, and paid by the next steps."""
        if not self._share:
            return self._scrubber.pick(None, skip) if self._share is None else []
        self._credit_s = min(self._credit_s, CREDIT_S_MAX) + max(self._floor_s, self._share * (now_s - self._began_s))
        return self._scrubber.pick(self._credit_s, skip)

    def _forget_all(self) -> None:
        """The weights are others now: every page is of another model, and none is known."""
        assert self.digests is not None
        assert self.model is not None
        self.digests.use_model(self.model.id)
        for block in list(self._sealed):
            self._forget(block)
        self._known.clear()
        self._tails.clear()
        self._unsaved.clear()
        self._loaded.clear()

    def _all_is_void(self, step: int, since_s: float | None) -> Report:
        """since_s: of `Model.watch`, where it was that which found it."""
        assert self.model is not None
        self._lost.clear()
        self._count("models_changed", 1)
        mixed_since = None
        if since_s is not None:
            mixed_since = max((at for at_s, at in self._marks if at_s <= since_s), default=0)
            self._count("models_changed_unannounced", 1)
        log.warning(
            "holdfast.model_changed", model=self.model.id.hex()[:16], settled=self.model.settled,
            mixed_since=mixed_since, step=step,
        )  # fmt: skip
        return Report(step, self.model.id, settled=self.model.settled, void=True, mixed_since=mixed_since)

    def _is_kept(self, page: Page, orders: Orders) -> bool:
        """Whether a store gets it."""
        assert self.model is not None
        return self.model.settled and page.block not in orders.unstored

    def _wrong(self, page: Page, row: Row) -> Kind | None:
        """What is wrong with a block that should hold this page. row: what it holds."""
        assert self.digests is not None
        sealed = self._sealed.get(page.block)
        if sealed is None:
            return Kind.ABSENT
        if self.digests.of(page, row) == sealed.digest:
            return None
        if self.digests.of(sealed.page, row) == sealed.digest or self._is_another(row):
            return Kind.MISPLACED
        return Kind.CHANGED

    def _is_another(self, row: Row) -> bool:
        """Whether this is an intact page, of another block."""
        assert self.digests is not None
        others = islice(self._sealed.values(), SEARCHED_MAX)
        return any(self.digests.of(other.page, row) == other.digest for other in others)

    def _take_in(self, orders: Orders, rows: Sequence[Row]) -> set[int]:
        """What others brought is sealed where it is now, if it was sealed so before. Returns the blocks of the rest.

        All that such a request reads is looked at: whoever brings pages may have written over those beside them.
        """
        assert self.digests is not None
        strange = []
        for page, row in zip(orders.brought, rows, strict=True):
            digest, sealed = self.digests.of(page, row), self._sealed.get(page.block)
            known = self._known.of(page.chain) + ((sealed.digest,) if sealed else ())
            if digest in known:
                self._keep(page, digest, orders.step)
                self._count("pages_brought", 0 if sealed else 1)
            else:
                kind = (Kind.MISPLACED if self._is_another(row) else Kind.CHANGED) if known else Kind.ABSENT
                strange.append((page, kind, sealed.good_step if sealed else orders.step - 1))
        for page, kind, good_step in strange:
            self._lose(page, kind, Where.BROUGHT, good_step)
        return {page.block for page, _, _ in strange}

    def _take_in_hit(self, page: Page, row: Row, step: int) -> None:
        """A page that others brought, and that another request hits before the one it was brought for reads it."""
        assert self.digests is not None
        if page.block in self._sealed or not self._known.of(page.chain):
            return
        digest = self.digests.of(page, row)
        if digest in self._known.of(page.chain):
            self._keep(page, digest, step)

    def _look_at_tails(self, step: int) -> None:
        assert self.digests is not None
        tails = list(self._tails.items())
        for (request_id, tail), row in zip(tails, self.digests.sums([t.page.block for _, t in tails]), strict=True):
            if self.digests.of(tail.page, row) != tail.digest:
                self._lost.append(Lost(tail.page, Kind.CHANGED, Where.TAIL, step - 1))
                del self._tails[request_id]
                self._count("corrupt.changed.tail", 1)
                log.error(
                    "holdfast.page_corrupt", block=tail.page.block, position=tail.page.position, kind=Kind.CHANGED,
                    where=Where.TAIL,
                )  # fmt: skip

    def _lose(self, page: Page, kind: Kind, where: Where, good_step: int | None = None) -> None:
        sealed = self._sealed.get(page.block)
        if good_step is None:
            good_step = sealed.good_step if sealed else -1
        self._lost.append(Lost(page, kind, where, good_step))
        self._forget(page.block)
        self._count(f"corrupt.{kind}.{where}", 1)
        log.error("holdfast.page_corrupt", block=page.block, position=page.position, kind=kind, where=where)

    def _withdraw(self, block: int) -> None:
        """What was stored of it too, unless the block was given out anew since: then nobody here knows its page."""
        sealed = self._sealed.get(block)
        if sealed is not None:
            self._known.forget(sealed.page.chain, sealed.digest)
        if self.exchange is None or self._unsaved.pop(block, None) is not None or sealed is None:
            return
        self.exchange.withdraw(sealed.page, sealed.digest)

    def _keep(self, page: Page, digest: bytes, step: int) -> None:
        self._sealed[page.block] = Sealed(page, digest, step)
        self._scrubber.seen(page.block, self._clock())

    def _seen(self, block: int, step: int) -> None:
        """Intact, as what it was sealed as: whoever asked may have named it before its block was given out."""
        sealed = self._sealed[block]
        self._keep(sealed.page, sealed.digest, step)

    def _remember(self, orders: Orders, page: Page, digest: bytes) -> None:
        """Unless its chain does not say what computed it: an adapter may be another one under its name by then."""
        if orders.remember and page.block not in orders.unstored:
            self._known.add(page.chain, digest)

    def _forget(self, block: int) -> None:
        self._sealed.pop(block, None)
        self._scrubber.forget(block)
