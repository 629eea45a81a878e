"""What a real vLLM's worker says of its own weights, run in it by `collective_rpc`; see test_real_vllm.py.

python -m tests.vllm_plugin.real_worker MODEL FILE      writes JSON
"""

import json
import sys
from pathlib import Path
from typing import Any

HEARD: list[str] = []  # in the worker's process
READINGS: list[Any] = []


def models(worker: Any) -> dict[str, Any]:
    draft = worker.get_draft_model()
    return {"": worker.get_model()} | ({} if draft is None else {"draft.": draft})


def described(worker: Any) -> dict[str, Any]:
    """All of it, as the plugin's worker half will do."""
    import vllm
    from transformers import AutoTokenizer

    from vllm_plugin.fingerprint import Fingerprint, Reading, absent, facts_of, watch_all, weights_of

    lines = absent()
    watch_all(lambda reason: HEARD.append(str(reason)))
    reading = Reading.of(weights_of(models(worker)))
    READINGS.append(reading)
    config = worker.vllm_config
    tokenizer = AutoTokenizer.from_pretrained(config.model_config.tokenizer)
    facts = facts_of(config, engine=vllm.__version__, kv_form="form", tokenizer=tokenizer)
    mine = Fingerprint.of(facts, reading, rank=worker.rank, ranks=config.parallel_config.world_size)
    return {
        "absent": lines, "forms": dict(reading.forms), "bytes": reading.read_bytes, "seconds": reading.seconds,
        "shard": mine.shard.hex(), "facts": {name: repr(facts[name]) for name in facts if name != "tokenizer"},
    }  # fmt: skip


def differs(worker: Any) -> list[str]:
    """From what it was at first."""
    from vllm_plugin.fingerprint import Reading, weights_of

    return READINGS[0].differs(Reading.of(weights_of(models(worker))))


def heard(worker: Any) -> list[str]:
    taken = list(HEARD)
    HEARD.clear()
    return taken


def packed_like_the_file(worker: Any, directory: str) -> bool:
    """Whether what oneDNN took, asked row by row, is what the checkpoint says, bit by bit."""
    import torch
    from safetensors import safe_open

    from vllm_plugin.fingerprint import weights_of

    name = "model.layers.1.self_attn.o_proj"
    contents = weights_of(models(worker))[f"{name}.cpu_linear.handler"].contents()
    assert contents is not None
    with safe_open(Path(directory) / "model.safetensors", "pt") as file:
        weight = file.get_tensor(f"{name}.weight")
    found = contents.cut(0, contents.size_bytes).view(weight.dtype).view(weight.shape[::-1])
    return bool(torch.equal(found.t(), weight))


def damaged(worker: Any) -> list[list[str]]:
    """One bit of the embedding by `.data`, undone; one bit of what a kernel took, taken anew; what is found of each."""
    import torch
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    from tests.vllm_plugin.models import flip
    from vllm_plugin.fingerprint import weights_of

    model = worker.get_model()
    flip(model.model.embed_tokens.weight.data, 12345, 3)
    found = [differs(worker)]
    flip(model.model.embed_tokens.weight.data, 12345, 3)
    layer = model.model.layers[2].mlp.down_proj
    contents = weights_of(models(worker))["model.layers.2.mlp.down_proj.cpu_linear.handler"].contents()
    assert contents is not None
    kept = contents.cut(0, contents.size_bytes).view(layer.weight.dtype).view(-1, layer.output_size).t().contiguous()
    for bits in (True, False):
        weight = kept.clone()
        if bits:
            flip(weight, 777, 0)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
        found.append(differs(worker))
    return found


def watched(worker: Any) -> dict[str, Any]:
    """A watchman's cycle on the real model."""
    from vllm_plugin.fingerprint import Generation, Pace, Watchman

    watchman = Watchman(models(worker), READINGS[0], Generation(), Pace(share=1.0))
    found: list[Any] = []
    while watchman.last is None:
        found += watchman.step()
    return {"found": [one.name for one in found], "busy_s": watchman.last.busy_s, "steps": watchman.last.steps}


def main() -> None:
    from vllm import LLM, SamplingParams

    directory = sys.argv[1]
    engine = LLM(directory, dtype="float32", max_model_len=512, enforce_eager=True, disable_log_stats=True)
    call = engine.collective_rpc
    said: dict[str, Any] = {"first": call(described)[0]}
    engine.generate({"prompt_token_ids": list(range(10, 200))}, SamplingParams(max_tokens=16, ignore_eos=True))
    said["after a request"] = call(differs)[0]
    said["packed like the file"] = call(packed_like_the_file, args=(directory,))[0]
    said["damaged"] = call(damaged)[0]
    said["watched"] = call(watched)[0]
    call(heard)
    call("reload_weights")
    said["heard"] = call(heard)[0]
    said["reloaded"] = call(differs)[0]
    call("reset_weights")
    said["reset"] = [call(heard)[0], len(call(differs)[0])]
    Path(sys.argv[2]).write_text(json.dumps(said))


if __name__ == "__main__":
    from tests.vllm_plugin import real_worker

    real_worker.main()  # of a module with a name: functions of __main__ are sent as copies, with lists of their own
