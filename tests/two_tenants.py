"""Two tenants before servers of known capacity: a modest one in a hurry, and one that sends the rest, or a flood.

What the servers can do is reckoned by the very engine that they run (loadtests/batching.py), so that a load is a number
of times what they can do, on any machine.
"""

import json
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from random import Random
from typing import Any, NamedTuple

from guards.place import BANDS
from guards.sla import Objective, ServiceClass, Slope, Tier
from loadtests.batching import Costs, Engine, Shape, Stream, What
from loadtests.stub_computer import COSTS, SHAPE
from loadtests.stub_tokenizer import PIECES_START, token_bytes
from tests.open_loop import Wish
from tests.scenarios.asking import order

SERVERS = 2
PLENTY = 3_000  # requests: more than one answers while it is measured
ENGINE = json.dumps({})  # as the stub has it
INTERACTIVE, BATCH = "interactive", "batch"
MODEST = 0.3  # of what the servers can do: what the interactive tenant asks for, under any load
PROMPT_TOKENS, ANSWER_TOKENS = (30, 2_000), (8, 400)  # the least and the most
MAX_TOKENS = ANSWER_TOKENS[1]  # what all clients allow: they do not know either how long answers get

FIRST_S = {INTERACTIVE: Slope(1.0, 1e-4), BATCH: Slope(5.0, 1e-4)}  # about twice what a prompt's tokens take alone
BETWEEN_S = 0.150
BAND_OF = {INTERACTIVE: 0, BATCH: BANDS - 2}
SECRETS = {who: f"sk-{who}-of-two-tenants" for who in FIRST_S}


class Size(NamedTuple):
    """One request, in tokens."""

    prompt: int
    answer: int


def size(rng: Random) -> Size:
    """Prompts and answers have heavy tails."""
    prompt = int(rng.lognormvariate(5.7, 0.8))
    answer = int(rng.lognormvariate(4.8, 0.7))
    return Size(_within(prompt, PROMPT_TOKENS), _within(answer, ANSWER_TOKENS))


@cache
def capacity_per_s(shape: Shape = SHAPE, costs: Costs = COSTS, seconds: float = 60.0) -> float:
    """How many such requests all servers together can answer in a second, whenever that is: they never lack any."""
    rng, engine = Random(1), Engine(shape, costs, Random(1))
    for number in range(PLENTY):
        engine.arrive(Stream(str(number), *size(rng)), 0.0)
    done = sum(event.what is What.DONE for event in engine.advance(seconds))
    assert engine.waiting, "it lacked requests"
    return SERVERS * done / seconds


@cache
def tier(who: str, times: float = 1.0) -> Tier:
    """What a tenant is promised. times: so many times as long, for slower machines."""
    first = Slope(*(times * part for part in FIRST_S[who]))
    return Tier(who, (ServiceClass(f"{who}-requests", Objective(first, times * BETWEEN_S)),))


def wishes(load: float, seconds: float, seed: int, per_s: float | None = None, times: float = 1.0) -> list[Wish]:
    """Requests of both tenants, so many times what the servers can do in all: Poisson processes, seeded.

    per_s: what the servers can do, where they are not the usual ones. times: see `tier`.
    """
    per_s = capacity_per_s() if per_s is None else per_s
    found = []
    for who, share in ((INTERACTIVE, MODEST), (BATCH, load - MODEST)):
        rng, at_s = Random(f"{seed} {who}"), 0.0
        while (at_s := at_s + rng.expovariate(share * per_s)) < seconds:
            found.append(wish(at_s, who, size(rng), rng, times))
    return sorted(found, key=lambda one: one.at_s)


def wish(at_s: float, who: str, asked: Size, rng: Random, times: float) -> Wish:
    """One request of a tenant, and what its class promises it."""
    promise = tier(who, times).promise(asked.prompt, asked.prompt, asked.answer)
    assert promise is not None
    body = {"model": "stub", "prompt": prompt(asked, rng), "max_tokens": MAX_TOKENS, "stream": True}
    return Wish(at_s, who, SECRETS[who], body | {"stream_options": {"include_usage": True}}, promise)


def prompt(asked: Size, rng: Random) -> str:
    """A text of about so many of the stub's tokens that begins like no other, and orders an answer of so many."""
    said = order(tokens=asked.answer)
    return "".join(rng.choices(_words(), k=max(1, asked.prompt - len(said)))) + said


def parts(*, on: bool, times: float = 1.0, **admission: Any) -> dict[str, Any]:
    """Parts of holdfast.yaml: tiers and keys, with admission or without.

    times: see `tier`. admission: more of that part.
    """
    keys = [key(who, SECRETS[who], who) for who in SECRETS]
    tiers = [in_configuration(tier(who, times), BAND_OF[who]) for who in SECRETS]
    return {"admission": {"on": on} | admission, "tiers": tiers, "keys": keys}


def key(user: str, secret: str, tier: str) -> dict[str, Any]:
    """A key as holdfast.yaml has it."""
    return {"user": user, "sha256": sha256(secret.encode()).hexdigest(), "tier": tier}


def in_configuration(tier: Tier, band: int) -> dict[str, Any]:
    """A tier as holdfast.yaml has it."""
    return {"name": tier.name, "priority": band, "classes": [_class(one) for one in tier.classes]}


def _class(one: ServiceClass) -> dict[str, Any]:
    first, between_s, _ = one.objective
    assert first is not None
    assert between_s is not None
    return {
        "name": one.name, "first_ms": first.base_s * 1e3, "first_ms_per_1k_tokens": first.token_s * 1e6,
        "between_ms": between_s * 1e3,
    }  # fmt: skip


@cache
def _words() -> Sequence[str]:
    """Those of the stub's tokens that are a word with a blank before it."""
    pieces = (piece.decode() for piece in token_bytes()[PIECES_START:] if piece.isascii())
    return [piece for piece in pieces if piece[0] == " " and piece[1:].isalpha()]


def _within(value: int, bounds: tuple[int, int]) -> int:
    return max(bounds[0], min(bounds[1], value))
