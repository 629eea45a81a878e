"""What a model's fingerprint costs, and its watchman, beside a copy:  python -m loadtests.fingerprint_speed [--json]

Run it with the Python of vLLM's environment. The model is of random tensors, as many and as large as a small one's:
half a gigabyte. Rounds are interleaved, so that a busy machine is busy for all; what may be compared between machines
is the ratio to the copy, of one run. The watchman runs beside steps that compute for a while and do nothing else.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from vllm_plugin.fingerprint import Fingerprint, Generation, Pace, Reading, Watchman, weights_of

LAYERS, HIDDEN, INNER, VOCABULARY = 16, 1024, 2816, 32000  # in bfloat16: 0.5 GB
ROUNDS = 7
STEP_S = 0.020  # of decoding
SHARES = (0.01, 0.05)
CYCLE_S_MAX = 25.0


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description="What a model's fingerprint costs, and its watchman, beside a copy.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds: to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = made(1 if given.quick else LAYERS)
    result = {"fingerprint": fingerprinting(model, 2 if given.quick else ROUNDS)}
    result["watchman"] = [watching(model, share, 0.5 if given.quick else CYCLE_S_MAX) for share in SHARES]
    if given.json:
        print(json.dumps(result, indent=1))
        return
    for name, value in result["fingerprint"].items():
        print(f"{name:28}{value}")
    for row in result["watchman"]:
        print(row)


def made(layers: int) -> nn.Module:
    """Tensors of any bits, with the names and sizes of a Llama's."""
    model, drawn = nn.Module(), torch.Generator().manual_seed(1)
    sizes = {"qkv": (3 * HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN), "input_norm": (HIDDEN,), "post_norm": (HIDDEN,)}
    sizes |= {"gate_up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER)}
    for number in range(layers):
        layer = nn.Module()
        for name, size in sizes.items():
            layer.register_parameter(name, _parameter(size, drawn))
        model.add_module(str(number), layer)
    for name in ("embed", "lm_head"):
        model.register_parameter(name, _parameter((VOCABULARY, HIDDEN), drawn))
    return model


def fingerprinting(model: nn.Module, rounds: int) -> dict[str, object]:
    """Medians of interleaved rounds, of all weights: a copy, and a reading with its fingerprint."""
    source = [parameter.detach() for parameter in model.parameters()]
    target = [torch.empty_like(one) for one in source]
    size = sum(one.numel() * one.element_size() for one in source)

    def copy() -> None:
        for one, other in zip(source, target, strict=True):
            other.copy_(one)

    def read() -> bytes:
        return Fingerprint.of({}, Reading.of(weights_of({"": model}))).shard

    seconds: dict[str, list[float]] = {"copy": [], "fingerprint": []}
    work: dict[str, Callable[[], object]] = {"copy": copy, "fingerprint": read}
    for number in range(rounds + 1):
        for name, do in work.items():
            begun = time.perf_counter()
            do()
            if number:  # the first is for memory, and for what is compiled, to be there
                seconds[name].append(time.perf_counter() - begun)
    speed = {name: size / statistics.median(taken) / 1e9 for name, taken in seconds.items()}
    return {
        "bytes": size,
        "tensors": len(source),
        "seconds": round(statistics.median(seconds["fingerprint"]), 4),
        "gb_per_s": round(speed["fingerprint"], 2),
        "copy_gb_per_s": round(speed["copy"], 2),
        "of_copy": round(speed["fingerprint"] / speed["copy"], 3),
    }


def watching(model: nn.Module, share: float, seconds_max: float) -> dict[str, object]:
    """Steps with a watchman in each, until it has been round once or time is up."""
    reading = Reading.of(weights_of({"": model}))
    watchman = Watchman({"": model}, reading, Generation(), Pace(share=share))
    begun, spent = time.perf_counter(), []
    while time.perf_counter() - begun < seconds_max and watchman.last is None:
        at = time.perf_counter()
        found = watchman.step()
        spent.append(time.perf_counter() - at)
        assert not found, found
        while time.perf_counter() - at < STEP_S:
            pass
    took = time.perf_counter() - begun
    idle = sum(1 for one in spent if one < 1e-4)
    return {
        "share": share,
        "share_seen": round(sum(spent) / took, 4),
        "of_a_step": round(sum(spent) / len(spent) / STEP_S, 4),
        "longest_ms": round(1000 * max(spent), 2),
        "steps": len(spent),
        "steps_at_rest": idle,
        "cycle_s_expected": round(watchman.cycle_s, 2),
        "cycle_s": round(watchman.last.seconds, 2) if watchman.last else None,
    }


def _parameter(size: tuple[int, ...], drawn: torch.Generator) -> nn.Parameter:
    bits = torch.randint(0, 256, (*size[:-1], 2 * size[-1]), dtype=torch.uint8, generator=drawn)
    return nn.Parameter(bits.view(torch.bfloat16), requires_grad=False)


if __name__ == "__main__":
    main()
