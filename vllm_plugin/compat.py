"""What of vLLM changes from version to version: the only file that knows it. Written for 0.32.

    what is sent            ToWorker, FromWorker
    what is looked at       facts, window, BlockCache, scheduled, pages, rank
    what is wrapped         Scheduler.update_from_output, GPUModelRunner.initialize_kv_cache, .sample_tokens,
                            MultiConnector: companions.py; what changes weights: fingerprint/changes.py
    what is asked           EngineCore.holdfast_status, .holdfast_scrub; Worker's; ask

versions.py says of which versions, and whether all of it is there.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata
from vllm.v1.core.kv_cache_utils import BlockHash, make_block_hash_with_group_id

from vllm_plugin import companions
from vllm_plugin.digest import LayoutRefused, Pages, Part, Rank
from vllm_plugin.fingerprint import CALLS, Reason, facts_of, watch_all
from vllm_plugin.fingerprint.changes import CORE
from vllm_plugin.page import Orders, Report
from vllm_plugin.refusals import Facts
from vllm_plugin.restore.generators import remembered
from vllm_plugin.schedule import Scheduled, Spoiled
from vllm_plugin.served import Named, Served
from vllm_plugin.wrapping import wrap

GROUP = 0  # the only one
KINDS = {
    "FullAttentionSpec": "full attention",
    "SlidingWindowSpec": "sliding window",
    "MLAAttentionSpec": "latent attention",
}


@dataclass
class ToWorker(KVConnectorMetadata):
    """Orders, as vLLM carries them."""

    orders: Orders


@dataclass
class FromWorker(KVConnectorWorkerMetadata):
    """A report, as vLLM carries it."""

    report: Report

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "FromWorker":
        assert isinstance(other, FromWorker)
        return FromWorker(self.report.merged(other.report))


# ---- what is looked at


def facts(vllm_config: Any, kv_cache_config: Any) -> Facts:
    """What refusals.py asks about."""
    parallel = vllm_config.parallel_config
    return Facts(
        prefix_caching=bool(vllm_config.cache_config.enable_prefix_caching),
        encoder_decoder=bool(vllm_config.model_config.is_encoder_decoder),
        context_parallel=getattr(parallel, "decode_context_parallel_size", 1) > 1
        or getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        async_scheduling=bool(vllm_config.scheduler_config.async_scheduling),
        v2_runner=bool(getattr(vllm_config, "use_v2_model_runner", False)),
        speculative_decoding=vllm_config.speculative_config is not None,
        pipeline_parallel=parallel.pipeline_parallel_size > 1,
        groups=tuple(
            KINDS.get(type(group.kv_cache_spec).__name__, type(group.kv_cache_spec).__name__)
            for group in kv_cache_config.kv_cache_groups
        ),
        workers=parallel.tensor_parallel_size * parallel.pipeline_parallel_size,
        pooling=getattr(vllm_config.model_config, "runner_type", "generate") == "pooling",
        own_logits_processors=bool(getattr(vllm_config.model_config, "logits_processors", None)),
        watermarks=getattr(vllm_config, "watermark_config", None) is not None,
    )


def window(kv_cache_config: Any) -> int | None:
    """How many tokens attention looks back, where vLLM gives up the pages before that; None where it keeps them."""
    spec = kv_cache_config.kv_cache_groups[GROUP].kv_cache_spec
    return spec.sliding_window if type(spec).__name__ == "SlidingWindowSpec" else None


def block_tokens(kv_cache_config: Any) -> int:
    """How many tokens a page has."""
    return int(kv_cache_config.kv_cache_groups[GROUP].kv_cache_spec.block_size)


def layer_names(kv_cache_config: Any) -> list[str]:
    """The layers whose parts a page is made of, in order."""
    return sorted(kv_cache_config.kv_cache_groups[GROUP].layer_names)


def rank(vllm_config: Any) -> Rank:
    """Which shard this worker has."""
    from vllm.distributed import get_pp_group, get_tp_group

    tensor, pipeline = get_tp_group(), get_pp_group()
    return Rank(tensor.rank_in_group, tensor.world_size, pipeline.rank_in_group, pipeline.world_size)


def pages(kv_caches: Mapping[str, Any], kv_cache_config: Any) -> Pages:
    """The blocks of the group, where they are. Raises LayoutRefused."""
    spec = kv_cache_config.kv_cache_groups[GROUP].kv_cache_spec
    return Pages(
        [_part(name, kv_caches[name], spec, kv_cache_config.num_blocks) for name in layer_names(kv_cache_config)]
    )


def _part(name: str, tensor: Any, spec: Any, blocks: int) -> Part:
    """One layer's. Since 0.32 a layer is [block, head, token, content], whatever lies how in memory."""
    size = spec.head_size
    latent = KINDS.get(type(spec).__name__) == "latent attention"
    if tensor.dim() != 4 or tensor.shape[0] % blocks or tensor.shape[3] != (size if latent else 2 * size):
        raise LayoutRefused(f"{name}: {tuple(tensor.shape)} is no cache of {blocks} blocks with heads of {size}")
    words = "head token dim" if latent else "head token kv.dim"
    if tensor.device.type == "cpu" and not latent:
        # Attention on the CPU takes a head's part of a block for all its keys, and then all its values.
        tokens = tensor.shape[2]
        tensor = tensor.view(*tensor.shape[:2], 2 * tokens, size).unflatten(2, (2, tokens))
        words = "head kv token dim"
    if tensor.shape[0] != blocks:  # the kernel's blocks are smaller than the scheduler's
        tensor, words = tensor.unflatten(0, (blocks, -1)), f"token {words}"
    return Part.of(tensor, f"block {words}")


def served(vllm_config: Any, runner: Any, kv_form: str, *, by_weights: bool, watch_share: float) -> Served | Named:
    """What pages are bound to. runner: of the worker, which has loaded its model. by_weights: and not by names only.

    Raises WeightsRefused, FactRefused.
    """
    import vllm
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
    facts = facts_of(vllm_config, engine=vllm.__version__, kv_form=kv_form, tokenizer=tokenizer)
    tensor, tensors, pipeline, pipelines, *_ = rank(vllm_config)
    number, ranks = pipeline * tensors + tensor, tensors * pipelines
    if not by_weights:
        model = vllm_config.model_config
        return Named(facts | {"name": [model.model, model.revision]}, number, ranks)
    return Served(
        lambda: _models(runner), facts, rank=number, ranks=ranks, adapters=lambda: _adapters(runner),
        watch_share=watch_share,
    )  # fmt: skip


def vocabulary_and_window(vllm_config: Any) -> tuple[int, int]:
    """How many tokens the model has, and how many of them a request has at most."""
    model = vllm_config.model_config
    return model.get_vocab_size(), model.max_model_len


def _models(runner: Any) -> dict[str, Any]:
    draft = runner.get_draft_model()
    return {"": runner.get_model()} | ({"draft.": draft} if draft is not None else {})


def _adapters(runner: Any) -> Iterator[tuple[object, Any]]:
    """Those that this step's requests have, as hashes of blocks name them."""
    for number, request in runner.input_batch.lora_id_to_lora_request.items():
        adapter = runner.lora_manager._adapter_manager.get_adapter(number)
        if adapter is not None:
            yield (request.lora_name, request.lora_path), adapter


class BlockCache:
    """vLLM's cache manager and its pool, as scheduler_side.py sees them."""

    def __init__(self, manager: Any) -> None:
        self._manager, self._pool = manager, manager.block_pool

    def cached(self, chain: bytes) -> int | None:
        found = self._pool.get_cached_block(BlockHash(chain), [GROUP])
        return found[0].block_id if found else None

    def is_cached_as(self, block: int, chain: bytes) -> bool:
        key = make_block_hash_with_group_id(BlockHash(chain), GROUP)
        more = getattr(self._pool, "cached_block_hashes_by_block", {})
        return self._pool.blocks[block].block_hash == key or key in more.get(block, ())

    def table(self, request_id: str) -> Sequence[int | None]:
        return [None if block.is_null else block.block_id for block in self._blocks(request_id)]

    def block(self, request_id: str, number: int) -> int | None:
        block = self._blocks(request_id)[number]
        return None if block.is_null else block.block_id

    def evict(self, blocks: Collection[int]) -> None:
        self._pool.evict_blocks(set(blocks))

    def evict_all(self) -> None:
        self._pool.evict_blocks(set(range(len(self._pool.blocks))))

    def _blocks(self, request_id: str) -> Sequence[Any]:
        found: Sequence[Any] = self._manager.get_blocks(request_id).blocks[GROUP]
        return found


def scheduled(scheduler_output: Any, requests: Mapping[str, Any], tokens: int) -> Iterator[Scheduled]:
    """The requests of a step. tokens: of a page."""
    counts = scheduler_output.num_scheduled_tokens
    for new in scheduler_output.scheduled_new_reqs:
        given_out = tuple(new.block_ids[GROUP][new.num_computed_tokens // tokens :])
        yield Scheduled(requests[new.req_id], counts[new.req_id], given_out, True)
    cached = scheduler_output.scheduled_cached_reqs
    for name, blocks, computed in zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True):
        fresh = name in cached.resumed_req_ids
        given_out = tuple(blocks[GROUP][computed // tokens if fresh else 0 :]) if blocks else ()
        yield Scheduled(requests[name], counts[name], given_out, fresh)


# ---- what is wrapped


def guard_scheduler() -> None:
    """From now on, what a step computed from bad pages is thrown away before anybody sees it, with companions or
    without.
    """
    from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
    from vllm.v1.core.sched.scheduler import Scheduler

    companions.guard(MultiConnector)
    wrap(Scheduler, "update_from_output", _update_from_output)


def know_runner() -> None:
    """From now on, a worker's connector knows its runner before it is told of the cache, and is told of what seeded
    requests draw from, before they do.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wrap(GPUModelRunner, "initialize_kv_cache", _initialize_kv_cache)
    wrap(GPUModelRunner, "sample_tokens", _sample_tokens)


def watch_engine(on_change: Callable[[Reason], None]) -> Callable[[], None]:
    """Be told of what the engine's process does that may change weights. Returns what undoes it. Raises WaysAbsent."""
    return watch_all(on_change, [call for call in CALLS if call.module == CORE])


def watch_worker(on_change: Callable[[Reason], None]) -> Callable[[], None]:
    """The same of a worker's process."""
    return watch_all(on_change, [call for call in CALLS if call.module != CORE])


def _update_from_output(original: Callable[..., Any], self: Any, scheduler_output: Any, output: Any, **kw: Any) -> Any:
    found = companions.find(self.connector)
    if found is None:
        return original(self, scheduler_output, output, **kw)
    sent = found.part(getattr(output.kv_connector_output, "kv_connector_worker_meta", None))
    running = {request.request_id for request in self.running}
    spoiled: Spoiled = found.connector.hear(sent, running, lambda request_id: _can_again(self, request_id))
    for request_id in spoiled.again | spoiled.failed:
        _empty(output, request_id)
    outputs = original(self, scheduler_output, output, **kw)
    found.connector.emitted(
        [one.request_id for outs in outputs.values() for one in outs.outputs or () if one.new_token_ids]
    )
    _compute_again(self, spoiled.again)
    _fail(self, outputs, spoiled.failed)
    return outputs


def _can_again(scheduler: Any, request_id: str) -> bool:
    """Who wants its prompt's probabilities cannot: it has got some of them already, in the runner's state."""
    sampling = getattr(scheduler.requests.get(request_id), "sampling_params", None)
    return getattr(sampling, "prompt_logprobs", None) is None


def _empty(output: Any, request_id: str) -> None:
    """As if nothing had been computed for it in this step."""
    index = output.req_id_to_index.get(request_id)
    if index is None:
        return
    if output.sampled_token_ids:
        output.sampled_token_ids[index] = []
    if output.pooler_output:
        output.pooler_output[index] = None
    output.prompt_logprobs_dict.pop(request_id, None)
    getattr(output, "prompt_token_id_logprobs_dict", {}).pop(request_id, None)  # since 0.32


def _compute_again(scheduler: Any, request_ids: Collection[str]) -> None:
    """Preempt them, as for want of room: the last one first, so that they are resumed in their order."""
    for request in [request for request in reversed(scheduler.running) if request.request_id in request_ids]:
        scheduler.running.remove(request)
        scheduler._preempt_request(request, time.monotonic())
        # They may be resumed in the next step already, for which they count as not having been in this one.
        getattr(scheduler, "prev_step_scheduled_req_ids", set()).discard(request.request_id)


def _fail(scheduler: Any, outputs: dict[int, Any], request_ids: Collection[str]) -> None:
    """End them with an error, and tell their clients so."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
    from vllm.v1.request import RequestStatus

    if not request_ids:
        return
    alive = [scheduler.requests[name] for name in request_ids if name in scheduler.requests]
    alive = [request for request in alive if not request.is_finished()]
    scheduler.finish_requests([request.request_id for request in alive], RequestStatus.FINISHED_ERROR)
    for request in alive:
        one = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=request.get_finished_reason(),
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
        outputs.setdefault(request.client_index, EngineCoreOutputs(outputs=[])).outputs.append(one)


def _initialize_kv_cache(original: Callable[..., Any], self: Any, *args: Any, **kw: Any) -> Any:
    """Raises RefusedAtStart, where connectors would not be protected together: before anything is computed."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    if has_kv_transfer_group():
        companions.check(get_kv_transfer_group())
    found = _of_worker()
    if found is not None:
        found.runner = self
    return original(self, *args, **kw)


def _sample_tokens(original: Callable[..., Any], self: Any, *args: Any, **kw: Any) -> Any:
    found = _of_worker()
    if found is not None and self.execute_model_state is not None:
        found.draws.clear()
        for index, generator in self.input_batch.generators.items():
            found.draws[self.input_batch.req_ids[index]] = (generator, remembered(generator))
    return original(self, *args, **kw)


def forget_chunks(runner: Any, request_id: str) -> None:
    """What pooling kept of the prompt's parts that were computed, to put it together in the end: it comes again."""
    request = getattr(runner, "requests", {}).get(request_id)
    states = getattr(request, "pooling_states", None)
    if states is not None:
        states.clean()


def runner() -> Any:
    """That of this worker."""
    return _of_worker().runner


def _of_worker() -> Any:
    """The plugin's connector in this worker, if there is one."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    found = companions.find(get_kv_transfer_group()) if has_kv_transfer_group() else None
    return found.connector if found is not None else None


# ---- what is asked from outside: by endpoint.py, of engines by name, and by those of their workers

STATUS, SCRUB = "holdfast_status", "holdfast_scrub"


def answer_in_engine() -> None:
    """From now on this process's engine has two more methods, which answer for it and for its workers."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, STATUS, _engine_status)
    setattr(EngineCore, SCRUB, _engine_scrub)


def answer_in_worker() -> None:
    """From now on this process's worker has two more methods."""
    from vllm.v1.worker.gpu_worker import Worker

    setattr(Worker, STATUS, _worker_status)
    setattr(Worker, SCRUB, _worker_scrub)


def has_connector(vllm_config: Any) -> bool:
    """Whether an engine of this configuration has the plugin's connector, alone or among others."""
    transfer = getattr(vllm_config, "kv_transfer_config", None)
    if transfer is None:
        return False
    members = (transfer.kv_connector_extra_config or {}).get("connectors", [])
    return companions.OURS in (transfer.kv_connector, *(member.get("kv_connector") for member in members))


def sampling_defaults(vllm_config: Any) -> dict[str, float] | None:
    """What requests get for fields that they leave out, where it is not vLLM's own; None where vLLM does not tell."""
    try:
        found = vllm_config.model_config.get_diff_sampling_param()
        return {name: float(value) for name, value in found.items()}
    except (AttributeError, TypeError, ValueError, OSError):  # of another version, or a file that is not there any more
        return None


async def ask(engine_client: Any, method: str, *args: Any) -> list[Any]:
    """What each engine answers that this API server's client knows: where engines are many, it may know some of them.

    args: what msgpack carries. Raises whatever vLLM does where an engine is dead, or fails to answer.
    """
    core = engine_client.engine_core
    if hasattr(core, "call_utility_all_async"):
        return list(await core.call_utility_all_async(method, *args))
    return [await core.call_utility_async(method, *args)]


def _engine_status(self: Any) -> dict[str, Any]:
    found = companions.find(self.scheduler.connector)
    assert found is not None, "it was put there by it"
    return {"scheduler": found.connector.status(), "workers": _of_workers(self, STATUS)}


def _engine_scrub(self: Any, name: str, slice_s: float) -> list[Any]:
    found = companions.find(self.scheduler.connector)
    assert found is not None, "it was put there by it"
    return _of_workers(self, SCRUB, name, slice_s, found.connector.given_up())


def _of_workers(core: Any, method: str, *args: Any) -> list[Any]:
    """Without a timeout: after one, vLLM would take the late answer for that to its next question."""
    answers: list[Any] = core.model_executor.collective_rpc(method, args=args)
    return answers


def _worker_status(self: Any) -> dict[str, Any]:
    answer: dict[str, Any] = _of_worker().status()
    return answer


def _worker_scrub(self: Any, name: str, slice_s: float, given_up: list[int]) -> list[int]:
    return list(_of_worker().scrub(name, slice_s, given_up))
