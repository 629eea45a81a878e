"""HoldfastConnector: vLLM's hooks, each a plain call on one of the two halves.

    --kv-transfer-config '{"kv_connector":"HoldfastConnector","kv_role":"kv_both","kv_load_failure_policy":"recompute"}'

In a step: the scheduler asks whether requests may read what they hit (`get_num_new_matched_tokens`), then says what the
step is (`build_connector_meta`). The worker forgets (`bind_connector_metadata`), computes, seals (`wait_for_save`),
looks (`build_connector_worker_meta`). The scheduler hears of it before it hands out any token (`hear`).
"""

import importlib
import random
import time
from collections.abc import Callable, Collection
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole, SupportsHMA

from vllm_plugin import companions, compat, crew, logs, versions
from vllm_plugin.digests import Digests
from vllm_plugin.exchange import Exchange
from vllm_plugin.fingerprint import FactRefused, OnChange, Reason, WaysAbsent, WeightsRefused
from vllm_plugin.gate import Gate
from vllm_plugin.loads import Loads
from vllm_plugin.lookups import Lookups
from vllm_plugin.page import Orders, Report
from vllm_plugin.plans import Plans
from vllm_plugin.prefix import Prefixes
from vllm_plugin.progress import Progress
from vllm_plugin.refusals import WEIGHTS, RefusedAtStart, is_protected, of_weights, refusals
from vllm_plugin.restore import arming
from vllm_plugin.restore.limits import why_not_here
from vllm_plugin.schedule import Spoiled
from vllm_plugin.scheduler_side import SchedulerHalf
from vllm_plugin.served import Named, Served
from vllm_plugin.settings import Settings
from vllm_plugin.status import of_scheduler, of_worker
from vllm_plugin.strangers import Strangers
from vllm_plugin.telemetry import AGE, WEIGHTS_CYCLE, Metrics, Stats
from vllm_plugin.whose import whose
from vllm_plugin.worker_side import Scrubbed, WorkerHalf

log = logs.logger()


class HoldfastConnector(KVConnectorBase_V1, SupportsHMA):
    """One in the scheduler's process and one in each worker's: which it is, its role says. Raises RefusedAtStart."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None, **kw: Any) -> None:
        _check_version(role)
        super().__init__(vllm_config, role, kv_cache_config)
        self.settings = settings = Settings.of(self._kv_transfer_config.kv_connector_extra_config)
        self._facts = facts = compat.facts(vllm_config, kv_cache_config)
        if lines := refusals(facts, settings.unprotected, settings.store):
            raise RefusedAtStart.saying(lines)
        self._stats, self._totals = Stats(), Stats()
        self._block_tokens = compat.block_tokens(kv_cache_config)
        self._by_weights = WEIGHTS not in settings.unprotected
        self._watching: list[Callable[[], None]] = []
        self._store: Any = None
        self._lookups: Lookups | None = None
        self._loads: Loads | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._requests: dict[str, Any] = {}
            self._prefixes = Prefixes(self._count)
            self._scheduler_half = SchedulerHalf(
                gate=Gate(settings.verify, random.Random()),
                block_tokens=self._block_tokens,
                window=compat.window(kv_cache_config),
                abort=settings.abort,
                protected=is_protected(facts),
                tails=settings.tails,
                every_tail=settings.scrub_share is None,
                tail_steps=settings.tail_steps,
                count=self._count,
            )
            self._plans: Plans | None = None
            if settings.store:
                self._store = self._open().open_store(settings.store, populate=False)
                self._lookups = Lookups(self._store.held)
                self._plans = Plans(self._lookups, self._stored_key, self._block_tokens)
            self._whole: Any = self
            self._others: list[str] = []
            compat.guard_scheduler()
            compat.answer_in_engine()
            self._missing = arming.in_engine(settings.continues, *compat.vocabulary_and_window(vllm_config))
            self._watch(compat.watch_engine, self._engine_did)
        else:
            self._progress: Progress | None = None
            self.runner: Any = None  # told by compat.know_runner
            self.draws: dict[str, tuple[Any, Any]] = {}  # of seeded requests: what they draw from, before they did
            self._worker_half = WorkerHalf(
                scrub_share=settings.scrub_share, scrub_floor_s=settings.scrub_floor_s, count=self._count
            )
            compat.know_runner()
            compat.answer_in_worker()
            self._missing = arming.in_worker(compat.runner)
        log.info("holdfast.started", role=role.name, protected=is_protected(facts), settings=settings)

    @property
    def requires_kv_delivery(self) -> bool:
        """A page that is not kept is computed again."""
        return False

    # ---- the scheduler's

    def join(self, whole: Any, others: list[str]) -> None:
        """It is a member of that one, beside these."""
        self._whole, self._others = whole, others
        if others:
            self._scheduler_half.strangers = Strangers()
            log.info("holdfast.joined", others=",".join(others))

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        """All connectors are there. Raises RefusedAtStart."""
        companions.check(self._whole)
        super().bind_kv_cache_manager(kv_cache_manager)
        self._scheduler_half.cache = compat.BlockCache(kv_cache_manager)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        if not self._scheduler_half.may_read(request, num_computed_tokens):
            return None, False
        if self._plans is None or request.skip_reading_prefix_cache or request.lora_request is not None:
            return 0, False
        if not self._scheduler_half.model:  # the first report tells it, after a step without requests
            return None, False
        if not self._scheduler_half.settled:
            return 0, False
        tokens = self._plans.beyond(
            request.request_id, request.block_hashes, request.num_tokens, num_computed_tokens
        )
        return tokens, bool(tokens)

    def on_new_request(self, request: Any) -> None:
        """From now on nobody writes anything into its session who lost it before."""
        of = whose(request.kv_transfer_params)
        if self._store is not None and of.generation:
            self._store.moved_soon(of.session, of.generation)

    def others_may_not(self, request: Any, num_computed_tokens: int) -> bool:
        """Whether a companion must not bring it anything: it has brought a bad page of its chain before."""
        return self._scheduler_half.others_may_not(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int, **kw: Any) -> None:
        self._requests[request.request_id] = request
        if num_external_tokens:
            assert self._plans is not None
            self._scheduler_half.waits(request, self._plans)
        else:
            self._scheduler_half.admitted(request)

    def build_connector_meta(self, scheduler_output: Any) -> compat.ToWorker:
        scheduled = list(compat.scheduled(scheduler_output, self._requests, self._block_tokens))
        self._prefixes.step(scheduled)
        preempted = scheduler_output.preempted_req_ids or ()
        return compat.ToWorker(self._scheduler_half.orders(scheduled, preempted))

    def hear(
        self, sent: compat.FromWorker | None, running: set[str], can_again: Callable[[str], bool]
    ) -> Spoiled:
        """What the workers found in this step, before its tokens are handed out."""
        report = sent.report if sent is not None else Report(-1, b"")
        return self._scheduler_half.hear(report, running, can_again)

    def emitted(self, request_ids: list[str]) -> None:
        """They were."""
        self._scheduler_half.emitted(request_ids)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Beside a connector that knows one group only, vLLM says it so."""
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        self._requests.pop(request.request_id, None)
        self._scheduler_half.finished(request.request_id)
        self._prefixes.finished(request.request_id)
        if self._plans is not None:
            self._plans.drop(request.request_id)
        return False, None

    def reset_cache(self) -> bool:
        self._scheduler_half.reset()
        return True

    # ---- the worker's

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        self._pages = pages = compat.pages(kv_caches, self._kv_cache_config)
        started_s = time.perf_counter()
        pages.warm()
        self._worker_half.model = self._model = model = self._served(pages.form)
        self._watch(compat.watch_worker, model.announce)
        self._worker_half.digests = Digests(
            pages,
            model=model.id,
            rank=compat.rank(self._vllm_config),
            pool=" ".join(compat.layer_names(self._kv_cache_config)),
            block_tokens=self._block_tokens,
            count=self._count,
        )
        if self.settings.store:
            self._worker_half.exchange = exchange = self._exchange(self._worker_half.digests)
            self._worker_half.loads = self._loads = Loads(exchange, pages.page_bytes)
        log.info(
            "holdfast.pages", blocks=pages.blocks, page_bytes=pages.page_bytes, form=pages.form,
            model=model.id.hex()[:16], weights_s=round(model.read_s, 2),
            start_s=round(time.perf_counter() - started_s, 2),
        )  # fmt: skip

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        super().bind_connector_metadata(connector_metadata)
        orders = self._orders()
        for request_id in orders.rewind:
            if request_id in self.draws:
                generator, state = self.draws[request_id]
                generator.set_state(state)
            compat.forget_chunks(self.runner, request_id)
        self._worker_half.before(orders)

    def start_load_kv(self, forward_context: Any, **kw: Any) -> None:
        self._worker_half.load(self._orders())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return None, self._worker_half.brought() or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._worker_half.not_brought()

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kw: Any) -> None:
        return

    def wait_for_save(self) -> None:
        self._worker_half.seal(self._orders())

    def build_connector_worker_meta(self) -> compat.FromWorker:
        return compat.FromWorker(self._worker_half.check(self._orders()))

    def _orders(self) -> Orders:
        sent = self._get_connector_metadata()
        assert isinstance(sent, compat.ToWorker)
        return sent.orders

    def _exchange(self, digests: Digests) -> Exchange:
        opened, pages = self._open(), self._pages
        self._store = opened.open_store(self.settings.store)
        self._progress = Progress(self._store.writing)
        return Exchange(
            self._store,
            manifest=opened.Manifest,
            stored=opened.Page,
            pages=pages,
            write=pages.write,
            digest=digests.in_place,
            key=lambda chain: digests.model + chain,
            block_tokens=self._block_tokens,
            threads=crew.THREADS_MAX if pages.device == "cpu" else 1,  # on a GPU a stream is a thread's own
        )

    def _served(self, kv_form: str) -> Served | Named:
        try:
            return compat.served(
                self._vllm_config, self.runner, kv_form, by_weights=self._by_weights,
                watch_share=self.settings.weights_share,
            )  # fmt: skip
        except (WeightsRefused, FactRefused) as error:
            raise RefusedAtStart(of_weights(str(error))) from error

    # ---- both

    def shutdown(self) -> None:
        for undo in self._watching:
            undo()
        self._watching.clear()
        for busy in (self._lookups, self._loads):
            if busy is not None:
                busy.close()
        if self._store is not None:
            self._store.close()  # writes what waits

    def _watch(self, watch: Callable[[OnChange], Callable[[], None]], told: OnChange) -> None:
        if not self._by_weights:
            return
        try:
            self._watching.append(watch(told))
        except WaysAbsent as error:
            raise RefusedAtStart(of_weights(str(error))) from error

    def _engine_did(self, reason: Reason) -> None:
        if reason.changes == "weights":
            self._scheduler_half.weights_may_differ()

    def _open(self) -> Any:
        """The room of page stores; only where one is asked for."""
        return importlib.import_module("vllm_plugin.store")

    def _stored_key(self, chain: bytes) -> bytes | None:
        model = self._scheduler_half.model
        return model + chain if model else None

    def get_kv_connector_stats(self) -> Stats | None:
        if self._role == KVConnectorRole.WORKER:
            for name, value in self._writing().items():
                self._stats.state(name, value)
            self._stats.state(AGE, self._worker_half.scrub_age_s())
            if self._model.cycle_s is not None:
                self._stats.state(WEIGHTS_CYCLE, self._model.cycle_s)
        stats, self._stats = self._stats, Stats()
        return None if stats.is_empty() else stats

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats:
        return Stats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *args: Any, **kw: Any) -> Metrics:
        return Metrics(*args, **kw)

    def _count(self, name: str, number: float) -> None:
        self._stats.count(name, number)
        self._totals.count(name, number)

    # ---- when somebody asks: status.py, endpoint.py

    def status(self) -> dict[str, Any]:
        """This half's part of it."""
        totals = self._totals.data
        if self._role == KVConnectorRole.SCHEDULER:
            mine = self._scheduler_half
            why_not = why_not_here(self._facts, self.settings.continues, self._missing, self._others)
            return of_scheduler(self.settings, self._facts, mine.model if mine.settled else b"", totals, why_not)
        half, writing = self._worker_half, self._writing()
        why_not = why_not_here(self._facts, self.settings.continues, self._missing)
        seeds = not why_not and arming.move_of(self.runner) is not None
        return of_worker(
            half.resident(), half.scrub_age_s(), totals, self._model.cycle_s,
            writing if self._progress is not None else None, continues_not=why_not, seeds=seeds,
        )  # fmt: skip

    def _writing(self) -> dict[str, float]:
        """How far this worker's store is; what it counted since the last time is counted here."""
        if self._progress is None:
            return {}
        for name, number in self._progress.counts():
            self._count(name, number)
        return self._progress.states()

    def given_up(self) -> list[int]:
        """The scheduler's: blocks that a scrub must leave alone."""
        return self._scheduler_half.given_up()

    def scrub(self, name: str, slice_s: float, given_up: Collection[int]) -> Scrubbed:
        """A worker's: a part of a scrub of all pages."""
        return self._worker_half.scrub(name, slice_s, given_up)


def _check_version(role: KVConnectorRole) -> None:
    """Raises RefusedAtStart."""
    from vllm import __version__

    hooks = versions.SCHEDULER if role == KVConnectorRole.SCHEDULER else versions.WORKER
    refused, warning = versions.judge(__version__, versions.missing_of(versions.CONNECTOR, hooks))
    if refused:
        raise RefusedAtStart.saying(refused)
    if warning:
        log.warning("holdfast.version", why=warning)
