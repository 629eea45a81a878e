"""Damages KV pages inside a worker of vLLM, as `--worker-extension-cls`. Does nothing without the secret of a test."""

import os
import random
from pathlib import Path
from typing import Any

SECRET_FILE = "HOLDFAST_TEST_SECRET_FILE"  # environment variable: a file that holds the secret
KINDS = ("flip", "swap", "rows", "replay", "zero", "truncate")


class Injector:
    """Mixed into vLLM's worker. All methods need the secret; blocks are numbers."""

    def holdfast_damage(self, secret: str, kind: str, block: int, other: int, seed: int) -> bool:
        """other: for «swap», the page that it changes places with. Returns whether the page is another one now."""
        layers = self._layers(secret)
        before = [layer[block].clone() for layer in layers]
        self._damage(kind, layers, block, other, random.Random(seed))
        return any(not (layer[block] == old).all() for layer, old in zip(layers, before, strict=True))

    def _damage(self, kind: str, layers: list[Any], block: int, other: int, rng: random.Random) -> None:
        if kind == "flip":
            words = rng.choice(layers)[block].view(-1).view(_ints())
            words[rng.randrange(len(words))] ^= 1 << rng.choice([3, 22, 26, 29, 30])
        elif kind == "swap":
            for layer in layers:
                mine = layer[block].clone()
                layer[block] = layer[other]
                layer[other] = mine
        elif kind == "rows":
            layer = rng.choice(layers)
            one, two = rng.sample(range(layer.shape[2]), 2)
            mine = layer[block, :, one].clone()
            layer[block, :, one] = layer[block, :, two]
            layer[block, :, two] = mine
        elif kind == "replay":
            for layer, old in zip(layers, self._kept_pages[block], strict=True):
                layer[block] = old
        elif kind == "zero":
            rng.choice(layers)[block] = 0
        elif kind == "truncate":
            layer = rng.choice(layers)
            layer[block, :, layer.shape[2] // 2 :] = 0

    def holdfast_keep(self, secret: str) -> None:
        """What is in all pages now, for «replay» later."""
        layers = self._layers(secret)
        self._kept_pages = [[layer[block].clone() for layer in layers] for block in range(layers[0].shape[0])]

    def holdfast_scale(self: Any, name: str, factor: float) -> None:
        """An operator's own method that changes a weight in place, as trainers add them."""
        from tests.vllm_plugin.real.weights import scale

        scale(self.get_model(), factor, name)

    def _layers(self: Any, secret: str) -> list[Any]:
        """Of each layer, [block, head, token, content]."""
        if not os.environ.get(SECRET_FILE) or Path(os.environ[SECRET_FILE]).read_text() != secret:
            raise PermissionError("no test")
        return list(self.model_runner.kv_caches)


def _ints() -> Any:
    import torch

    return torch.int32
