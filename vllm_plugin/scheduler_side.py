"""The scheduler's half: which pages exist, who holds them, what is to be looked at, and what a bad page spoils.

It knows neither torch nor vLLM: requests and the cache are seen through the two protocols of schedule.py.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

from vllm_plugin import logs
from vllm_plugin.gate import Gate
from vllm_plugin.kept import Coming, Kept, Next
from vllm_plugin.page import Kind, Lost, Orders, Page, Report, Tail, Where
from vllm_plugin.plans import Plans
from vllm_plugin.residents import Residents
from vllm_plugin.schedule import Cache, Request, Scheduled, Spoiled
from vllm_plugin.strangers import Strangers
from vllm_plugin.whose import Whose, whose

log = logs.logger("scheduler")

AGAIN_MAX = 8  # times that a request is computed again: a block that cannot keep anything would have it run for ever


class SchedulerHalf:
    """One for the engine. block_tokens: of a page. window: how many tokens attention looks back, None for all.

    abort: running requests that hold a corrupt page fail. protected: whether their output of the step at hand can be
    thrown away; where it cannot, they fail too. tails: whether pages that are being filled are looked at; every_tail:
    all in each step, or one in so many steps. count: told (name, how many), for metrics.
    """

    def __init__(
        self,
        *,
        gate: Gate,
        block_tokens: int,
        window: int | None = None,
        abort: bool = False,
        protected: bool = True,
        tails: bool = True,
        every_tail: bool = True,
        tail_steps: int = 1,
        count: Callable[[str, float], None] = lambda name, number: None,
    ) -> None:
        self._gate = gate
        self._block_tokens = block_tokens
        self._window = window
        self._abort, self._protected = abort, protected
        self._tails, self._every_tail, self._tail_steps = tails, every_tail, tail_steps
        self._count = count
        self._residents = Residents()
        self._kept: dict[str, Kept] = {}
        self._broken: set[str] = set()
        self._waiting: set[str] = set()
        self._doomed: set[str] = set()
        self._coming = Coming()
        self.model, self.settled = b"", True
        self._unsettled_since: int | None = None
        self._hits: dict[str, int] = {}
        self.strangers: Strangers | None = None  # where there are other connectors
        self._step = 0
        self._next = Next()
        self.cache: Cache | None = None

    # ---- while the scheduler makes up its mind

    def may_read(self, request: Request, local_tokens: int) -> bool:
        """Whether a request may be admitted with so many tokens hit in the cache. If not, it will be asked again."""
        if self.strangers is not None:
            self._hits[request.request_id] = local_tokens // self._block_tokens
        return self._gate.opens(request.request_id, self._hit(request, local_tokens))

    def others_may_not(self, request: Request, local_tokens: int) -> bool:
        """Whether no other connector may bring this request anything, behind what is here."""
        chains = request.block_hashes[local_tokens // self._block_tokens :]
        return self.strangers is not None and self.strangers.are_refused(request.request_id, chains)

    def admitted(self, request: Request) -> None:
        """It has its blocks. They must be one unbroken chain of what was verified, in order, or it is not believed."""
        let_in = tuple(page.block for page in self._gate.admitted(request.request_id))
        self._waiting.discard(request.request_id)
        self._coming.over(request.request_id)
        kept = self._kept.setdefault(request.request_id, Kept(request))
        kept.sealed = kept.held = 0
        # What was loaded for it, or a session that goes on: it held its pages all the time.
        kept.let_in = None if request.num_computed_tokens else let_in
        if self.strangers is not None and not request.num_computed_tokens:
            self._expect(request, kept)
        self._count("prefix_hit_tokens", len(let_in) * self._block_tokens)

    def waits(self, request: Request, plans: Plans) -> None:
        """It has blocks, and waits for what is to be loaded into them; it is admitted later."""
        assert self.cache is not None
        self._gate.admitted(request.request_id)
        load = plans.load(request.request_id, self._table(request.request_id), self._given_out)
        load = load._replace(whose=whose(request.kv_transfer_params))
        self._next.load.append(load)
        self._waiting.add(request.request_id)
        self._coming.add(load)

    def weights_may_differ(self) -> None:
        """Something was done that may have changed them: they are read again before the next forward pass."""
        self._next.reread = True

    def orders(self, scheduled: Sequence[Scheduled], preempted: Iterable[str] = ()) -> Orders:
        """Of this step, once the scheduler has made up its mind. Most requests only go on, a token further: those cost
        a comparison each.
        """
        self._step += 1
        check = self._gate.take(self._residents.holds)
        gone = [*self._next.release, *preempted]  # before anybody holds anything anew
        now, self._next = self._next, Next()
        forget = now.forget
        hold: list[tuple[str, tuple[int, ...]]] = []
        seal: list[Page] = []
        unstored: set[int] = set()
        theirs: dict[int, Whose] = {}
        brought: list[Page] = []
        for one in scheduled:
            request, tokens, given_out, fresh = one
            kept = self._kept[request.request_id]
            if given_out:
                forget += given_out
                self._residents.given_out(given_out)
            if fresh:
                gone.append(request.request_id)  # what it held before it was preempted
                brought += self._begun(request, kept)
                hold.append((request.request_id, self._held(request, kept)))
            elif given_out:
                kept.held += len(given_out)
                hold.append((request.request_id, given_out))
            if (request.num_computed_tokens + tokens) // self._block_tokens > kept.sealed:
                filled = self._filled(one, kept)
                seal += filled
                if request.lora_request is not None:  # its chain names its adapter, and not what is in that
                    unstored |= {page.block for page in filled}
                if (of := whose(request.kv_transfer_params)).session:
                    theirs |= {page.block: of for page in filled}
        # Some had to make room, after they were asked for in this very pass.
        check = tuple(page for page in check if self._residents.is_current(page))
        return Orders(
            self._step, tuple(forget), tuple(hold), tuple(gone), tuple(now.rewind), self._tails_of(scheduled),
            tuple(seal), check, tuple(now.load), tuple(now.withdraw), frozenset(unstored), theirs, now.reread,
            tuple(brought), self.strangers is not None, bool(scheduled),
        )  # fmt: skip

    # ---- when a step is over

    def hear(
        self, report: Report, running: Iterable[str], can_again: Callable[[str], bool] = lambda request_id: True
    ) -> Spoiled:
        """What the workers found: evict what is bad, and all that may have been computed from it.

        running: requests that hold blocks, and whose output of this step was not handed out yet. can_again: whether one
        of them can be computed anew; if not, it fails.
        """
        self._gate.hear(report)
        running = list(running)
        if report.model:
            other = report.void or self.model not in (b"", report.model)
            self.model, self.settled = report.model, report.settled
            if other:
                return self._all_is_void(report, running, can_again)
        self._arrived(report)
        again = set(self._broken)
        failed: set[str] = set()
        bad = set(self._broken)
        for lost in report.lost:
            current = self._residents.is_current(lost.page)
            if not current and not lost.page.chain:
                continue
            blocks = self._withdraw(lost, current)
            if lost.where == Where.BROUGHT and self.strangers is not None:
                self.strangers.refuse(lost.page.chain)
            if not lost.spoils:
                continue
            for request_id in running:
                if not blocks.isdisjoint(self._table(request_id)):
                    bad |= {request_id} if lost.kind != Kind.ABSENT else set()
                    (failed if self._emitted(request_id) > lost.good_step else again).add(request_id)
            for request_id in self._kept.keys() - set(running):
                holds = not blocks.isdisjoint(self._table(request_id))  # as a session does between two turns
                if self._emitted(request_id) > lost.good_step and (holds or self._held_once(request_id, lost)):
                    failed.add(request_id)
                elif holds:
                    self._doomed.add(request_id)
            # Who waits, with blocks, cannot be stopped before it is admitted.
            self._doomed |= {name for name in self._waiting if not blocks.isdisjoint(self._table(name))}
        for request_id in self._broken:
            self._distrust(request_id)
        self._broken.clear()
        for request_id in again:
            self._kept[request_id].times += 1
        failed |= {name for name in again if not self._protected or self._kept[name].times > AGAIN_MAX}
        failed |= {name for name in again if not can_again(name)}
        failed |= again & bad if self._abort else set()  # a page that nobody here knows need not be corrupt
        return self._spoil(Spoiled(frozenset(again - failed), frozenset(failed)))

    def emitted(self, request_ids: Iterable[str]) -> None:
        """They gave tokens to their clients in this step."""
        for request_id in request_ids:
            if request_id in self._kept:
                self._kept[request_id].emitted_step = self._step

    def finished(self, request_id: str) -> None:
        """It is no more. Its client may have hung up while the step ran in which it computed what nobody must read."""
        if request_id in self._broken:
            self._distrust(request_id)
        self._gate.admitted(request_id)
        self._kept.pop(request_id, None)
        self._broken.discard(request_id)
        self._waiting.discard(request_id)
        self._coming.over(request_id)
        self._doomed.discard(request_id)
        self._hits.pop(request_id, None)
        if self.strangers is not None:
            self.strangers.finished(request_id)
        self._next.release.append(request_id)

    def reset(self) -> None:
        """The prefix cache was emptied: what nobody holds is not to be looked at any more, whatever is there."""
        held = {block for name in self._kept.keys() | self._waiting for block in self._table(name)}
        for block in sorted(self._residents.blocks() - held):
            self._residents.forget(block)
            self._next.forget.append(block)
        self._gate.reset()
        if self.strangers is not None:
            self.strangers.clear()

    def given_up(self) -> list[int]:
        """The blocks whose pages are no more, of which the workers hear with the next orders only. Where an engine
        sleeps, their memory may be gone already.
        """
        return list(self._next.forget)

    # ---- leaves

    def _all_is_void(
        self, report: Report, running: Collection[str], can_again: Callable[[str], bool]
    ) -> Spoiled:
        """What was computed before, and in this step, is another model's: nobody reads it, all are computed anew.

        Tokens that were given out before the change are right, of the model before; but not those that were given out
        since: where that was found late, or while a change went on that took several steps.
        """
        assert self.cache is not None
        self.cache.evict_all()
        self._count("pages_evicted", len(self._residents))
        self._residents.clear()
        self._coming.clear()
        self._broken.clear()
        # Who waits for pages, and sessions between two turns, hold theirs and cannot be stopped before they go on.
        self._doomed |= self._waiting | {name for name in self._kept.keys() - set(running) if self._table(name)}
        mixed = [since for since in (report.mixed_since, self._unsettled_since) if since is not None]
        since = min(mixed, default=None)
        if report.settled:
            self._unsettled_since = None
        elif self._unsettled_since is None:
            self._unsettled_since = self._step + 1  # what this step computed is thrown away
        # Also those that had to make room since, and hold nothing now.
        failed = {name for name in self._kept if since is not None and self._emitted(name) >= since}
        failed |= {name for name in running if not self._protected or not can_again(name)}
        log.warning("holdfast.all_pages_void", model=report.model.hex()[:16], requests=len(running))
        return self._spoil(Spoiled(frozenset(running) - failed, frozenset(failed)))

    def _held_once(self, request_id: str, lost: Lost) -> bool:
        """Whether it had that page, or a copy of it, before it had to make room: so it may have been given tokens."""
        again = request_id in self._waiting or not self._table(request_id)
        return again and lost.page.chain in map(bytes, self._kept[request_id].request.block_hashes)

    def _expect(self, request: Request, kept: Kept) -> None:
        """Whatever is in the blocks that it did not hit: somebody writes to them from now on, it itself or others."""
        kept.expects = True
        hits = self._hits.pop(request.request_id, 0)
        blocks = [block for block in self._table(request.request_id)[hits:] if block is not None]
        self._residents.given_out(blocks)
        self._next.forget += blocks

    def _brought(self, request: Request, kept: Kept) -> list[Page]:
        """All pages that it reads from this step on, if others have brought some of them."""
        if not kept.expects or self.strangers is None:
            return []
        kept.expects = False
        first = self._first_seen(request.num_computed_tokens)
        table = self._table(request.request_id)
        looked_at = self.strangers.pages(request, first, table, self._block_tokens, self._residents, self._step)
        if looked_at is None:
            self._broken.add(request.request_id)
        return looked_at or []

    def _hit(self, request: Request, local_tokens: int) -> list[Page]:
        """The pages that a look-up just hit, those left of the window not among them."""
        assert self.cache is not None
        count = local_tokens // self._block_tokens
        pages = []
        for number in range(self._first_seen(local_tokens), count):
            chain = bytes(request.block_hashes[number])
            block = self.cache.cached(chain)
            if block is None:
                break
            pages.append(self._residents.page(block, 0, chain, number * self._block_tokens))
        return pages

    def _given_out(self, block: int, chain: bytes, position: int) -> Page:
        """A page that will be written to a block that was just given out."""
        self._residents.given_out([block])
        self._next.forget.append(block)
        return self._residents.page(block, 0, chain, position)

    def _arrived(self, report: Report) -> None:
        """What was loaded is resident, those pages that are intact."""
        for page in report.loaded:
            parent = self._coming.came(page)
            if parent is not None and self._residents.is_current(page):
                self._residents.filled(page, parent, report.step)
                self._count("pages_loaded", 1)

    def _first_seen(self, tokens: int) -> int:
        """The first page that attention still looks at, for the next token."""
        return 0 if self._window is None else max(0, tokens - self._window + 1) // self._block_tokens

    def _distrust(self, request_id: str) -> None:
        """It computed this step from what it should not have read: nobody reads what it has, or has filled."""
        assert self.cache is not None
        blocks = {block for block in self._table(request_id) if block is not None}
        self.cache.evict(blocks)
        for block in blocks:  # others may hold those that were full before, and have them looked at
            if self._residents.filled_in(block) == self._step:
                self._residents.forget(block)
                self._next.forget.append(block)
                self._next.withdraw.append(block)

    def _has_holes(self, request: Request, kept: Kept, looked_at: bool) -> bool:
        """A request that was admitted must read one unbroken chain, of the very pages that it was let in with.

        The chain begins with its first token, or with the first that the window reaches. It was admitted already: so
        it computes this step, and what comes of it is thrown away. looked_at: whether all of its pages are looked at in
        this step anyhow, as others brought some of them.
        """
        assert self.cache is not None
        if kept.let_in is None:
            return False
        count, first = kept.sealed, self._first_seen(request.num_computed_tokens)
        table = self.cache.table(request.request_id)
        in_place = [
            block
            for number, block in enumerate(table[first:count], first)
            if block is not None and self.cache.is_cached_as(block, bytes(request.block_hashes[number]))
        ]
        broken = len(in_place) != max(0, count - first) or (tuple(in_place) != kept.let_in and not looked_at)
        if broken:
            log.error("holdfast.chain_broken", request=request.request_id, pages=count)
            self._count("chains_broken", 1)
        return broken

    def _begun(self, request: Request, kept: Kept) -> list[Page]:
        """It was admitted, and computes for the first time since. Returns what of it others brought."""
        kept.sealed = request.num_computed_tokens // self._block_tokens
        looked_at = self._brought(request, kept)
        if request.request_id in self._doomed or self._has_holes(request, kept, bool(looked_at)):
            self._doomed.discard(request.request_id)
            self._broken.add(request.request_id)
        return looked_at

    def _held(self, request: Request, kept: Kept) -> tuple[int, ...]:
        table = self._table(request.request_id)
        kept.held = len(table)
        return tuple(block for block in table if block is not None)

    def _filled(self, one: Scheduled, kept: Kept) -> list[Page]:
        """The pages that this step fills. Draft tokens that may be taken back do not count."""
        assert self.cache is not None
        request, pages = one.request, []
        known = min(request.num_computed_tokens + one.tokens, request.num_tokens)
        full = min(known // self._block_tokens, len(request.block_hashes), kept.held)
        for number in range(kept.sealed, full):
            block = self.cache.block(request.request_id, number)
            if block is None:
                continue
            parent = bytes(request.block_hashes[number - 1]) if number else b""
            chain = bytes(request.block_hashes[number])
            page = self._residents.page(block, 0, chain, number * self._block_tokens)
            self._residents.filled(page, parent, self._step)
            pages.append(page)
        kept.sealed = max(full, kept.sealed)
        return pages

    def _tails_of(self, scheduled: Sequence[Scheduled]) -> tuple[Tail, ...]:
        """Of all, or of one after the other."""
        turn, not_now = divmod(self._step, self._tail_steps)
        if not self._tails or not scheduled or (not_now and not self._every_tail):
            return ()
        some = scheduled if self._every_tail else (scheduled[turn % len(scheduled)],)
        return tuple(tail for one in some if (tail := self._tail(one)) is not None)

    def _tail(self, one: Scheduled) -> Tail | None:
        assert self.cache is not None
        name = one.request.request_id
        known = one.request.num_computed_tokens + one.tokens
        number = known // self._block_tokens
        if not known % self._block_tokens or number >= self._kept[name].held:
            return None
        block = self.cache.block(name, number)
        assert block is not None, "nobody leaves behind what is being written"
        return Tail(name, self._residents.page(block, 0, b"", number * self._block_tokens))

    def _withdraw(self, lost: Lost, current: bool) -> set[int]:
        """Evict a page and what may have been computed from it. Returns their blocks.

        current: whether the page is still there; its block may have been given out anew since it was found.
        """
        assert self.cache is not None
        mine = {lost.page.block} if current else set()
        chain = lost.page.chain or self._residents.chain(lost.page.block)
        spoils = bool(chain) and lost.spoils  # a page that is not full has none that continue it
        below = self._residents.descended(chain, lost.good_step) if spoils else set()
        blocks = mine | below
        self.cache.evict(blocks)
        for block in blocks:
            self._residents.forget(block)
        self._next.forget += sorted(blocks)
        self._next.withdraw += sorted(blocks - mine if lost.page.chain else blocks)
        self._count("pages_evicted", len(mine))
        self._count("pages_withdrawn", len(blocks) - len(mine))
        log.warning(
            "holdfast.page_lost", block=lost.page.block, position=lost.page.position, kind=lost.kind,
            where=lost.where, withdrawn=len(blocks) - len(mine),
        )  # fmt: skip
        return blocks

    def _spoil(self, spoiled: Spoiled) -> Spoiled:
        self._next.rewind += sorted(spoiled.again)
        self._count("requests_recomputed", len(spoiled.again))
        self._count("requests_aborted", len(spoiled.failed))
        for request_id in sorted(spoiled.again):
            log.warning("holdfast.request_recomputed", request=request_id, step=self._step)
        for request_id in sorted(spoiled.failed):
            log.error("holdfast.request_aborted", request=request_id, step=self._step)
        return spoiled

    def _emitted(self, request_id: str) -> int:
        return self._kept[request_id].emitted_step if request_id in self._kept else -1

    def _table(self, request_id: str) -> Sequence[int | None]:
        assert self.cache is not None
        return self.cache.table(request_id)
