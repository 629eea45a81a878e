"""Versions of vLLM: which ones Holdfast was tried with, and whether the one that is here has all that it holds on to.

A version that is too old does not start. A newer one does if every hook is there by its name and with its parameters,
and says that nobody has tried it; else it does not, as a hook that vLLM does not call protects nothing.
"""

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TRIED = ("0.30.0", "0.31.0", "0.32.0")
OLDEST, NEWEST = TRIED[0], TRIED[-1]

Hooks = Mapping[str, Mapping[str, Sequence[str]]]
CONNECTOR: Hooks = {
    "vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1": {
        "bind_kv_cache_manager": ["kv_cache_manager"],
        "on_new_request": ["request"],
        "get_num_new_matched_tokens": ["request", "num_computed_tokens"],
        "update_state_after_alloc": ["request", "blocks", "num_external_tokens"],
        "build_connector_meta": ["scheduler_output"],
        "request_finished": ["request", "block_ids"],
        "reset_cache": [],
        "register_kv_caches": ["kv_caches"],
        "bind_connector_metadata": ["connector_metadata"],
        "start_load_kv": ["forward_context"],
        "wait_for_save": [],
        "get_finished": ["finished_req_ids"],
        "get_block_ids_with_load_errors": [],
        "build_connector_worker_meta": [],
        "get_kv_connector_stats": [],
        "shutdown": [],
    },
}
SCHEDULER: Hooks = {
    "vllm.v1.core.sched.scheduler:Scheduler": {
        "update_from_output": ["scheduler_output", "model_runner_output"],
        "_preempt_request": ["request", "timestamp"],
        "finish_requests": ["request_ids", "finished_status"],
    },
    "vllm.v1.core.kv_cache_manager:KVCacheManager": {"get_blocks": ["request_id"]},
    "vllm.v1.core.block_pool:BlockPool": {
        "get_cached_block": ["block_hash", "kv_cache_group_ids"],
        "evict_blocks": ["block_ids"],
    },
    "vllm.distributed.kv_transfer.kv_connector.v1.multi_connector:MultiConnector": {
        "bind_kv_cache_manager": ["kv_cache_manager"],
        "get_num_new_matched_tokens": ["request", "num_computed_tokens"],
    },
}
WORKER: Hooks = {
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": {
        "sample_tokens": ["grammar_output"],
        "initialize_kv_cache": ["kv_cache_config"],
        "get_model": [],
        "get_draft_model": [],
    },
}
# What requests are continued by; where it is not there, pages are guarded all the same. Of a module's functions the
# owner is "".
CONTINUED_IN_ENGINE: Hooks = {
    "vllm.v1.request:Request": {
        "from_engine_core_request": ["request", "block_hasher"],
        "append_output_token_ids": ["token_ids"],
    },
    "vllm.v1.structured_output:StructuredOutputManager": {
        "_create_grammar": ["request"],
        "accept_tokens": ["request", "new_token_ids"],
    },
}
CONTINUED_IN_WORKER: Hooks = {"vllm.v1.worker.gpu_input_batch:InputBatch": {"add_request": ["request"]}}
CONTINUED_BY_SERVER: Hooks = {
    "vllm.v1.engine.async_llm:AsyncLLM": {"generate": ["prompt", "sampling_params", "request_id"]},
    "vllm.v1.engine.output_processor:OutputProcessor": {
        "add_request": ["request", "prompt", "parent_req", "request_index", "queue"],
        "process_outputs": ["engine_core_outputs"],
    },
    "vllm.v1.engine.output_processor:RequestOutputCollector": {"put": ["output"], "get": [], "get_nowait": []},
    "vllm.v1.core.sched.utils:": {"check_stop": ["request", "max_model_len"]},
    "vllm.inputs.engine:": {"tokens_input": ["prompt_token_ids"]},
}


class Verdict(NamedTuple):
    """refusals: why not to start, in whole lines. warning: what to say besides, or nothing."""

    refusals: list[str]
    warning: str = ""


def judge(version: str, missing: Sequence[str]) -> Verdict:
    """version: of vLLM. missing: what `missing_of` found."""
    tried = ", ".join(TRIED)
    found, oldest, newest = (_release(one) for one in (version, OLDEST, NEWEST))
    if found is not None and oldest is not None and found < oldest:
        return Verdict([f"vLLM {version} is older than any that Holdfast was tried with, {tried}: install one of them"])
    if missing:
        what = ", ".join(missing)
        return Verdict([f"vLLM {version} has no {what}: install one that Holdfast was tried with, {tried}"])
    if found is None or newest is None or found > newest:
        return Verdict([], f"vLLM {version}: Holdfast was tried with {tried} only; all that it holds on to is there")
    return Verdict([])


def missing_of(*hooks: Hooks) -> list[str]:
    """Which of them this vLLM has not, or not with these parameters."""
    return [
        f"{where.partition(':')[2] or where.strip(':')}.{name}({', '.join(parameters)})"
        for one in hooks
        for where, names in one.items()
        for name, parameters in names.items()
        if not _has(where, name, parameters)
    ]


def _has(where: str, name: str, parameters: Sequence[str]) -> bool:
    module, _, owner = where.partition(":")
    try:
        found: Any = importlib.import_module(module)
        method: Any = getattr(getattr(found, owner) if owner else found, name)
    except (ImportError, AttributeError):
        return False
    first = 1 if owner and not inspect.ismethod(method) else 0  # "self"
    return list(inspect.signature(method).parameters)[first : first + len(parameters)] == list(parameters)


def _release(version: str) -> tuple[int, int] | None:
    """Its first two numbers; None where there are none: it was built from a commit."""
    found = re.match(r"(\d+)\.(\d+)\.\d", version)
    return (int(found[1]), int(found[2])) if found else None
