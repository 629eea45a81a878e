"""Damages KV pages inside a worker of vLLM, as `--worker-extension-cls`. Does nothing without the secret of a test."""

import os
import random
from pathlib import Path
from typing import Any

SECRET_FILE = "HOLDFAST_TEST_SECRET_FILE"  # environment variable: a file that holds the secret
KINDS = ("flip", "swap", "rows", "replay", "zero", "truncate", "flips")


class Injector:
    """Mixed into vLLM's worker. All methods need the secret; blocks are numbers."""

    def holdfast_damage(self, secret: str, kind: str, block: int, other: int, seed: int) -> bool:
        """other: for «swap», the page that it changes places with. Returns whether the page is another one now."""
        layers = self._layers(secret)
        before = [_bits(layer[block].clone()) for layer in layers]
        self._damage(kind, layers, block, other, random.Random(seed))
        return any(not (_bits(layer[block]) == old).all() for layer, old in zip(layers, before, strict=True))

    def _damage(self, kind: str, layers: list[Any], block: int, other: int, rng: random.Random) -> None:
        if kind in ("flip", "flips"):  # any one of the 32 bits, or two of one word or of two
            words = _bits(rng.choice(layers)[block])
            places = rng.sample(range(32 * len(words)), 1 if kind == "flip" else 2)
            if kind == "flips" and rng.random() < 0.5:
                places[1] = places[0] ^ rng.randrange(1, 32)
            for place in places:
                words[place // 32] ^= 1 << place % 32 if place % 32 < 31 else -(1 << 31)
        elif kind == "swap":
            for layer in layers:
                mine = layer[block].clone()
                layer[block] = layer[other]
                layer[other] = mine
        elif kind == "rows":
            rows = _rows(rng.choice(layers), block)
            one, two = rng.sample(range(rows.shape[2]), 2)
            mine = rows[:, :, one].clone()
            rows[:, :, one] = rows[:, :, two]
            rows[:, :, two] = mine
        elif kind == "replay":
            for layer, old in zip(layers, self._kept_pages[block], strict=True):
                layer[block] = old
        elif kind == "zero":
            rng.choice(layers)[block] = 0
        elif kind == "truncate":
            rows = _rows(rng.choice(layers), block)
            rows[:, :, rows.shape[2] // 2 :] = 0

    def holdfast_keep(self, secret: str) -> None:
        """What is in all pages now, for «replay» later."""
        layers = self._layers(secret)
        self._kept_pages = [[layer[block].clone() for layer in layers] for block in range(layers[0].shape[0])]

    def holdfast_scale(self: Any, name: str, factor: float) -> None:
        """An operator's own method that changes a weight in place, as trainers add them."""
        from tests.vllm_plugin.real.weights import scale

        scale(self.get_model(), factor, name)

    def _layers(self: Any, secret: str) -> list[Any]:
        """Of each layer, [block, head, token, keys and values], as vLLM calls it."""
        if not os.environ.get(SECRET_FILE) or Path(os.environ[SECRET_FILE]).read_text() != secret:
            raise PermissionError("no test")
        return list(self.model_runner.kv_caches)


def _rows(layer: Any, block: int) -> Any:
    """One layer's part of a block as attention on the CPU takes it: [head, keys or values, token, content]."""
    heads, tokens, content = layer[block].shape
    return layer[block].view(heads, 2, tokens, content // 2)


def _bits(page: Any) -> Any:
    """As whole numbers: of floats, two zeros are one, and what is no number is never what it was."""
    import torch

    return page.view(-1).view(torch.int32)
