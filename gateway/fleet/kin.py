"""Asks replicas of a model what tokenizer, chat template and sampling defaults they have, and compares them.

It takes vLLM's own routes, none of which computes a token: /tokenize, and /v1/completions/render, which tells what a
request would be run with (vLLM has it with --enable-scale-out). Where Holdfast's plugin tells the sampling defaults,
they are taken from there. What a server does not tell, it is not compared by.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from gateway.fleet.canary import Answer, Ask
from gateway.fleet.replica import Replica
from guards.kinship import UNKNOWN, Traits, apart

log = structlog.get_logger()

LOOK_EVERY_S = 1.0  # whether one came up, or serves other weights
AGAIN_S = 60.0  # between comparisons where nothing seems to have changed: a reload that nobody told of
ANSWER_S = 5.0
RENDER = "/v1/completions/render"
MODELS_MAX = 8  # of one server that are compared; each takes three or four small questions
ABSENT = (401, 403, 404, 405, 501)  # it has no such route for us, or no such model
TEXT = "Grüße,  Привет 世界! 12345 + 0.5\n\tdef f(x):\n        return x['a'] # 🦀 naïveté\r\n<s></s><|endoftext|>"
SYSTEM = {"role": "system", "content": "You are terse."}
TALK = [
    {"role": "user", "content": "What is 6 × 7?"},
    {"role": "assistant", "content": "42"},
    {"role": "user", "content": "And 8 × 9?"},
]
REFUSED = "refused"  # what is told of a chat that a server has no template for
SAMPLING = {  # as OpenAI's API has them, where neither a request nor the model says anything
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class Hears(Protocol):
    """Told of what follows from it."""

    def parted(self, replica: Replica, model: str) -> None:
        """It came to differ from the others of a model, or in other things, or does so no more: `Replica.apart`."""


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Render(msgspec.Struct):
    sampling_params: dict[str, Any]


class Unheard(Exception):
    """A server that was asked did not answer."""


class Kin:
    """Compares the replicas of each model when one of them came up, or says that its weights are others.

    All that are up are asked at once, for a template may hold the date. ask: puts a small question to a replica.
    """

    def __init__(self, replicas: Sequence[Replica], ask: Ask, listener: Hears, clock: Callable[[], float]) -> None:
        self._replicas = list(replicas)
        self._ask, self._listener, self._clock = ask, listener, clock

    async def run(self) -> None:
        """Look for as long as the gateway lives; what goes wrong with one model does not end the others."""
        while True:
            for model in self._models():
                try:
                    await self.look(model)
                except Exception:
                    log.exception("kin.fault", model=model)
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self, model: str) -> None:
        """Ask the replicas of one model that are up, if any of them is due, and compare them."""
        up = [one for one in self._replicas if one.health.up and model in _models_of(one)]
        if len(up) < 2 or not any(self._due(one, model) for one in up):
            return
        anew = {one.name: self._anew(one, model) for one in up}
        for one in up:
            one.kin_asked[model] = (self._clock(), one.fingerprints)
        await asyncio.gather(*(self._read(one, model, anew[one.name]) for one in up))
        family = [(one.name, one.traits.get(model, UNKNOWN)) for one in self._replicas if one in up]
        found = apart(family)
        for one in up:
            before, now = one.apart.get(model, ()), found.get(one.name, ())
            if now != before:
                one.apart[model] = now
                self._listener.parted(one, model)

    def _models(self) -> list[str]:
        return list(dict.fromkeys(model for one in self._replicas for model in _models_of(one)))

    def _due(self, replica: Replica, model: str) -> bool:
        return self._anew(replica, model) or self._clock() - replica.kin_asked[model][0] >= AGAIN_S

    def _anew(self, replica: Replica, model: str) -> bool:
        """Whether what was found of it may be of another engine than the one that is there now."""
        if (asked := replica.kin_asked.get(model)) is None:
            return True
        asked_s, fingerprints = asked
        return replica.since_s > asked_s or fingerprints != replica.fingerprints

    async def _read(self, replica: Replica, model: str, anew: bool) -> None:
        """Ask one for its traits. Of one that does not answer, what is known stays, unless it may be anew."""
        try:
            replica.traits[model] = Traits(
                tokenizer=await self._tokens(replica, {"model": model, "prompt": TEXT}),
                template=await self._chat(replica, model),
                sampling=await self._sampling(replica, model),
            )
        except Unheard:
            if anew:
                replica.traits[model] = UNKNOWN

    async def _tokens(self, replica: Replica, said: dict[str, Any]) -> str | None:
        answer = await self._asked(replica, "/tokenize", said)
        if answer.status == 400:
            return REFUSED
        told = _decoded(answer, _Tokens)
        return None if told is None else _digest(told.tokens)

    async def _chat(self, replica: Replica, model: str) -> str | None:
        """A template that has no place for a system's message refuses it: then it is asked for the rest."""
        found = await self._tokens(replica, {"model": model, "messages": [SYSTEM, *TALK]})
        if found != REFUSED:
            return found
        return await self._tokens(replica, {"model": model, "messages": TALK})

    async def _sampling(self, replica: Replica, model: str) -> str | None:
        status = replica.pages.status
        params = status.sampling if status is not None else None
        if params is None:
            answer = await self._asked(replica, RENDER, {"model": model, "prompt": "a", "max_tokens": 1})
            told = _decoded(answer, list[_Render])
            if not told:
                return None
            params = told[0].sampling_params
        said = {name: params.get(name) for name in SAMPLING}
        numbers = {name: float(value) for name, value in said.items() if isinstance(value, (int, float))}
        if numbers.get("top_k", 0) < 0:  # -1 is another word for none
            del numbers["top_k"]
        return _digest(SAMPLING | numbers)

    async def _asked(self, replica: Replica, path: str, said: dict[str, Any]) -> Answer:
        """Raises Unheard."""
        answer = await self._ask(replica.name, path, msgspec.json.encode(said), ANSWER_S)
        if not answer.reached or answer.silent or (answer.status >= 500 and answer.status not in ABSENT):
            raise Unheard
        return answer


def _decoded(answer: Answer, kind: Any) -> Any:
    """What it says; None where that is nothing of the kind."""
    if answer.status != 200:
        return None
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _models_of(replica: Replica) -> list[str]:
    return [replica.model] if replica.model is not None else list(replica.serves)[:MODELS_MAX]


def _digest(told: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:16]
