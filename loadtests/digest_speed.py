"""What a page's digest costs on one core, beside a copy and numpy:  python -m loadtests.digest_speed [--json]

Run it with the Python of vLLM's environment. Rounds are interleaved, so that a busy machine is busy for all; what may
be compared between machines is the ratio to the copy, of one run. Pages are of 2 MiB, 32 layers, as an 8B model's with
16 tokens in bfloat16. One page is gone over again and again, and so is in the caches; of many nothing is.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from vllm_plugin.digest import Header, Pages, Part, Rank, seal, seal_keyed
from vllm_plugin.digest.keys import KEYS, TILE_WORDS

LAYERS, TOKENS, HEADS, DIM = 32, 16, 8, 128
BF16 = torch.bfloat16
SHAPES = {  # as vLLM allocates them: the layout in words, the size of each axis, the dtype
    "contiguous": ("block kv token head dim", {"kv": 2, "token": TOKENS, "head": HEADS, "dim": DIM}, BF16),
    "vLLM 0.32 CPU": ("block head kv token dim", {"head": HEADS, "kv": 2, "token": TOKENS, "dim": DIM}, BF16),
    "vLLM 0.32 GPU": ("block head token kv.dim", {"head": HEADS, "token": TOKENS, "kv.dim": 2 * DIM}, BF16),
    "vLLM 0.20 CPU": ("kv block head token dim", {"kv": 2, "head": HEADS, "token": TOKENS, "dim": DIM}, BF16),
    "FlashAttention": ("kv block token head dim", {"kv": 2, "token": TOKENS, "head": HEADS, "dim": DIM}, BF16),
    "0.32 CPU, float32, heads of 32": (
        "block head kv token dim", {"head": 8, "kv": 2, "token": 32, "dim": 32}, torch.float32
    ),
}  # fmt: skip
MANY, ROUNDS = 128, 15
AGAIN = 32  # times in a row for one page


def main() -> None:
    """Measure, and tell."""
    parser = argparse.ArgumentParser(description="What a page's digest costs, beside a copy and numpy.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a few pages and rounds: to see that it runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    counts, rounds = ((1,), 3) if given.quick else ((1, MANY), ROUNDS)
    rows = [row for count in counts for row in measured(count, rounds)]
    if given.json:
        print(json.dumps({"page_bytes": contents(SHAPES["contiguous"], 1).page_bytes, "rows": rows}, indent=1))
        return
    print(f"{'what':44}{'pages':>6}{'GB/s':>8}{'of the copy':>14}")
    for row in rows:
        print(f"{row['what']:44}{row['pages']:6}{row['gb_per_s']:8.1f}{row['of_copy']:14.2f}")


def measured(count: int, rounds: int) -> list[dict[str, object]]:
    """One row for each thing that is done with so many pages: medians of interleaved rounds."""
    groups = {name: contents(shape, count) for name, shape in SHAPES.items()}
    assert len({pages.page_bytes for pages in groups.values()}) == 1
    for pages in groups.values():
        pages.warm()
    work = works(groups, count)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    times = AGAIN if count == 1 else 1
    for number in range(rounds + 1):
        for name, do in work.items():
            begun = time.perf_counter()
            for _ in range(times):
                do()
            if number:  # the first is for memory to be there
                seconds[name].append(time.perf_counter() - begun)
    size = times * count * groups["contiguous"].page_bytes
    speed = {name: size / statistics.median(taken) / 1e9 for name, taken in seconds.items()}
    return [
        {"what": name, "pages": count, "gb_per_s": round(value, 2), "of_copy": round(value / speed["copy"], 3)}
        for name, value in speed.items()
    ]


def works(groups: dict[str, Pages], count: int) -> dict[str, Callable[[], object]]:
    """What is measured, by name; each goes over as many bytes."""
    ids = np.random.default_rng(1).permutation(count)
    plain = np.random.default_rng(2).integers(0, 2**32, count * groups["contiguous"].page_bytes // 4, dtype=np.uint32)
    target = np.zeros_like(plain)
    tiles = plain.reshape(-1, TILE_WORDS)
    pages = groups["contiguous"]
    header = Header(model=b"m", form=pages.form, page_bytes=pages.page_bytes, rank=Rank(), pool="0").page(b"c", 0, 16)

    def by_numpy() -> object:
        return [(tile * KEYS).sum() for tile in tiles]

    def sealed() -> object:
        return [seal(header, row) for row in pages.sums(ids)]

    def keyed() -> object:
        return [seal_keyed(bytes(32), header, [pages.bytes(block)]) for block in ids]

    work: dict[str, Callable[[], object]] = {"copy": lambda: np.copyto(target, plain)}
    work |= {f"sums, {name}": partial(pages.sums, ids) for name, pages in groups.items()}
    return work | {"sums and seal, contiguous": sealed, "keyed seal of bytes": keyed, "numpy": by_numpy}


def contents(shape: tuple[str, dict[str, int], torch.dtype], count: int) -> Pages:
    """Layers of any bits, as many tensors as vLLM would have."""
    layout, sizes, dtype = shape
    rng = np.random.default_rng(3)
    size = [sizes.get(word, count) for word in layout.split()]
    size[-1] *= dtype.itemsize
    bits = (torch.from_numpy(rng.integers(0, 256, size, dtype=np.uint8)).view(dtype) for _ in range(LAYERS))
    return Pages([Part.of(layer, layout) for layer in bits])


if __name__ == "__main__":
    main()
