"""Real vLLM in this very process, driven step by step, and damaged between steps."""

import os
import random
import secrets
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gateway.local.plugged import installed
from tests.vllm_plugin.real import injector

REPOSITORY = Path(__file__).resolve().parents[3]
MODEL = REPOSITORY / ".cache" / "tiny-model-float32"
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def prompts(seed: int, families: int, each: int, shared: int, own: int) -> list[list[list[int]]]:
    """Random prompts: of each family so many, which begin with the same tokens."""
    rng = random.Random(seed)
    return [
        [prefix + [rng.randrange(10, 8000) for _ in range(own)] for _ in range(each)]
        for prefix in ([rng.randrange(10, 8000) for _ in range(shared)] for _ in range(families))
    ]


def look_at_own_modules() -> None:
    """vLLM puts its CPU kernels in place of others by looking through all modules, and falls over llvmlite, should
    numba be there already: as it is when this process had an engine before. Its own modules are enough.
    """
    try:
        from vllm.triton_utils import dispatcher
    except ImportError:  # before 0.32
        return
    dispatcher.sys = OwnModules()


def among(ours: dict[str, Any], beside: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As a member of a MultiConnector, in the place of the empty one. The policy is said once, of the whole."""
    policy = {"kv_load_failure_policy": ours.pop("kv_load_failure_policy")}
    connectors = [one or ours for one in beside]
    return {
        "kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"connectors": connectors},
    } | policy  # fmt: skip


class OwnModules:
    """What stands for `sys` there."""

    @property
    def modules(self) -> dict[str, Any]:
        return {name: module for name, module in sys.modules.items() if name.startswith("vllm.")}


class Engine:
    """One vLLM. plugin: what goes into `kv_connector_extra_config`, or None for vLLM as it is.

    beside: the configurations of other connectors, ours among them as an empty one. options: of `vllm.LLM`. One engine
    at a time in a process.
    """

    def __init__(
        self, folder: Path, plugin: dict[str, Any] | None, beside: Sequence[dict[str, Any]] = (), **options: Any
    ) -> None:
        secret_file = folder / "secret"
        self._secret = secrets.token_hex()
        secret_file.write_text(self._secret)
        os.environ.update(ENVIRONMENT, **{injector.SECRET_FILE: str(secret_file)})
        paths = [str(installed(folder / "installed")), str(REPOSITORY)]
        sys.path[:0] = paths
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
        if not (MODEL / "complete").exists():
            script = REPOSITORY / "gateway" / "local" / "tiny_model.py"
            subprocess.run([sys.executable, str(script), str(MODEL)], check=True, capture_output=True)
        from vllm import LLM

        look_at_own_modules()
        transfer = {
            "kv_connector": "HoldfastConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": plugin,
        }  # fmt: skip
        if beside:
            transfer = among(transfer, beside)
        self._llm = LLM(
            **{
                "model": str(MODEL), "dtype": "float32", "max_model_len": 2048, "enforce_eager": True,
                "disable_log_stats": False,
                "worker_extension_cls": "tests.vllm_plugin.real.injector.Injector",
                "num_gpu_blocks_override": 256, "block_size": 32,
                "kv_transfer_config": transfer if plugin is not None else None,
            } | options,
        )  # fmt: skip
        self._engine = self._llm.llm_engine
        self.scheduler = self._engine.engine_core.engine_core.scheduler
        self._number = 0
        self.tables: dict[str, list[int]] = {}
        self.chains: dict[str, list[bytes]] = {}
        self.done: dict[str, list[Any]] = {}
        self.tokens: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[float]] = {}
        self.ended: dict[str, str | None] = {}

    def add(
        self, prompt: Sequence[int], tokens: int = 8, salt: str | None = None, lora: Any = None, **sampling: Any
    ) -> str:
        """A request, from the next step on; greedy unless said otherwise. lora: of vLLM. Returns its name."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._number += 1
        name = f"r{self._number}"
        if sampling.pop("output_kind", None) == "final":  # all its answers at once, in the end
            sampling["output_kind"] = RequestOutputKind.FINAL_ONLY
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True} | sampling)
        body: dict[str, Any] = {"prompt_token_ids": list(prompt)}
        if salt is not None:
            body["cache_salt"] = salt
        self._engine.add_request(name, body, params, lora_request=lora)
        return name

    def embed(self, prompt: Sequence[int]) -> list[float]:
        """What a pooling model makes of it."""
        (output,) = self._llm.embed([{"prompt_token_ids": list(prompt)}], use_tqdm=False)
        return list(output.outputs.embedding)

    def step(self) -> None:
        """One step of the engine. What it gives out is in `tokens` and `ended` then, and in `tables` and `chains` what
        those hold that go on.
        """
        outputs = self._engine.step()
        for output in outputs:
            self.done[output.request_id] = [list(one.token_ids) for one in output.outputs]
            first = output.outputs[0]
            self.tokens[output.request_id] = list(first.token_ids)
            if first.logprobs is not None:  # of the tokens that were chosen, where that was asked for
                pairs = zip(first.token_ids, first.logprobs, strict=True)
                self.logprobs[output.request_id] = [said[token].logprob for token, said in pairs]
            if output.finished:
                self.ended[output.request_id] = first.finish_reason
        for internal, request in self.scheduler.requests.items():
            name = internal.rpartition("-")[0] or internal
            self.tables[name] = self.scheduler.kv_cache_manager.get_block_ids(internal)[0]
            self.chains[name] = [bytes(chain) for chain in request.block_hashes]

    def run(self, names: Iterable[str], steps_max: int = 4000) -> list[list[int]]:
        """Until they have ended. Returns their tokens."""
        names = list(names)
        for _ in range(steps_max):
            if all(name in self.ended for name in names):
                return [self.tokens[name] for name in names]
            self.step()
        raise AssertionError(f"not ended after {steps_max} steps: {set(names) - set(self.ended)}")

    def ask(self, prompt: Sequence[int], tokens: int = 8, **sampling: Any) -> list[int]:
        """One request, alone."""
        return self.run([self.add(prompt, tokens, **sampling)])[0]

    def damage(self, kind: str, block: int, other: int = 0, seed: int = 0) -> bool:
        """Now, in the worker's memory. Returns whether the page is another one then."""
        (done,) = self._engine.collective_rpc("holdfast_damage", args=(self._secret, kind, block, other, seed))
        return bool(done)

    def keep(self) -> None:
        """What all pages hold now, for «replay»."""
        self._engine.collective_rpc("holdfast_keep", args=(self._secret,))

    def call(self, method: str, *args: Any) -> Any:
        """One of the worker's methods, as an operator would call it."""
        (answer,) = self._engine.collective_rpc(method, args=args)
        return answer

    @property
    def model(self) -> Any:
        """The model itself, behind everybody's back."""
        return self._engine.engine_core.engine_core.model_executor.driver_worker.worker.get_model()

    def forget(self) -> None:
        """Empty the prefix cache."""
        assert self.scheduler.reset_prefix_cache(reset_connector=True)

    def metric(self, name: str, **labels: str) -> float:
        """A counter of the plugin's, all labels that are not given added up."""
        from prometheus_client import REGISTRY

        return sum(
            sample.value
            for metric in REGISTRY.collect()
            for sample in metric.samples
            if sample.name in (name, f"{name}_total") and labels.items() <= sample.labels.items()
        )

    def settled(self, name: str, least: float) -> float:
        """That counter, once it is so much: a store writes by itself, and is heard of with the steps of its engine."""
        for _ in range(500):
            if self.metric(name) >= least:
                break
            self.ask([1, 2, 3], 2)
        return self.metric(name)

    def preemptions(self) -> float:
        """How often a request had to make room, or was computed again."""
        return self.metric("vllm:num_preemptions")

    def stop(self) -> None:
        """So that this process may have another one."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        del self._llm, self._engine, self.scheduler
        cleanup_dist_env_and_memory()
