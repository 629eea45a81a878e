"""A hand in the KV pages of a vLLM worker, as `--worker-extension-cls`: damages them when it is told to.

A server has it only where whoever starts it names it, and it does nothing without the secret in the file that
SECRET_FILE names. It runs in vLLM's environment, between two steps of the engine.
"""

import hmac
import os
import random
from pathlib import Path
from typing import Any

SECRET_FILE = "HOLDFAST_GAMEDAY_SECRET_FILE"  # environment variable: a file that holds the secret
EXTENSION = "loadtests.gameday.page_hand.PageHand"
KINDS = ("flip", "swap", "rows", "replay", "zero", "truncate", "flips")
WORD_BITS = 32


class PageHand:
    """Mixed into vLLM's worker. All methods need the secret; blocks are numbers."""

    def holdfast_damage(self, secret: str, kind: str, block: int, other: int, seed: int) -> bool:
        """other: the page that «swap» exchanges it with, or «copy» copies. Returns whether it is another page now."""
        layers = self._layers(secret)
        before = [_bits(layer[block].clone()) for layer in layers]
        self._damage(kind, layers, block, other, random.Random(seed))
        return any(not (_bits(layer[block]) == old).all() for layer, old in zip(layers, before, strict=True))

    def holdfast_keep(self, secret: str) -> None:
        """What is in all pages now, for «replay» later."""
        layers = self._layers(secret)
        self._kept_pages = [[layer[block].clone() for layer in layers] for block in range(layers[0].shape[0])]

    def holdfast_held(self, secret: str, prompt: list[int]) -> dict[str, Any]:
        """What a running request of exactly this prompt holds; empty where there is none.

        blocks: in the order of its tokens. computed: how many of these surely have their page's content by now.
        """
        self._layers(secret)
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        for request in runner.requests.values():
            if list(request.prompt_token_ids or ()) == prompt:
                return {"blocks": list(request.block_ids[0]), "computed": int(request.num_computed_tokens)}
        return {}

    def holdfast_damage_held(
        self, secret: str, prompt: list[int], place: str, kind: str, page_tokens: int, seed: int
    ) -> dict[str, Any]:
        """Damage a page of a running request; empty where it does not run, or has no such page yet.

        place: PROMPT, a full page of the prompt; ANSWER, one of the answer; FILLING, the page that is being filled.
        """
        held = self.holdfast_held(secret, prompt)
        number = page_of(place, len(prompt), held.get("computed", 0), page_tokens, random.Random(seed))
        if number is None:
            return {}
        blocks = held["blocks"]
        return {"changed": self.holdfast_damage(secret, kind, blocks[number], blocks[number - 1], seed), "page": number}

    def _damage(self, kind: str, layers: list[Any], block: int, other: int, rng: random.Random) -> None:
        if kind in ("flip", "flips"):  # any one of the 32 bits, or two of one word or of two
            words = _bits(rng.choice(layers)[block])
            places = rng.sample(range(WORD_BITS * len(words)), 1 if kind == "flip" else 2)
            if kind == "flips" and rng.random() < 0.5:
                places[1] = places[0] ^ rng.randrange(1, WORD_BITS)
            for place in places:
                words[place // WORD_BITS] ^= 1 << place % WORD_BITS if place % WORD_BITS < 31 else -(1 << 31)
        elif kind == "swap":
            for layer in layers:
                mine = layer[block].clone()
                layer[block] = layer[other]
                layer[other] = mine
        elif kind == "copy":
            for layer in layers:
                layer[block] = layer[other]
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

    def _layers(self: Any, secret: str) -> list[Any]:
        """Of each layer, [block, head, token, keys and values], as vLLM calls it."""
        if not known(secret):
            raise PermissionError("not for you")
        return list(self.model_runner.kv_caches)


def known(secret: str) -> bool:
    """Whether it is the one in the file that SECRET_FILE names."""
    file = os.environ.get(SECRET_FILE)
    return bool(file) and hmac.compare_digest(Path(str(file)).read_text(), secret)


PROMPT, ANSWER, FILLING = "prompt, while it runs", "answer, while it runs", "being filled"
PLACES = (PROMPT, ANSWER, FILLING)


def page_of(place: str, prompt: int, computed: int, page_tokens: int, rng: random.Random) -> int | None:
    """Number of a page of a running request, from the second on; None where there is none of that place yet. Pure.

    prompt, computed: tokens. The page that is being filled has some content, and room for more than the next token.
    """
    full, begun = computed // page_tokens, computed % page_tokens
    first_of_answer = -(-prompt // page_tokens)  # the first page that has nothing of the prompt
    if computed < prompt:
        return None
    if place == PROMPT:
        last = min(full, prompt // page_tokens)
        return rng.randrange(1, last) if last > 1 else None
    if place == ANSWER:
        return rng.randrange(first_of_answer, full) if full > first_of_answer else None
    return full if full >= 1 and 0 < begun < page_tokens - 1 else None


def _rows(layer: Any, block: int) -> Any:
    """One layer's part of a block as attention on the CPU takes it: [head, keys or values, token, content]."""
    heads, tokens, content = layer[block].shape
    return layer[block].view(heads, 2, tokens, content // 2)


def _bits(page: Any) -> Any:
    """As whole numbers: of floats, two zeros are one, and what is no number is never what it was."""
    import torch  # type: ignore[import-not-found]

    return page.view(-1).view(torch.int32)
