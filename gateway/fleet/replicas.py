"""The replicas of each model: probed, counted, picked."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import structlog

from guards import routing
from guards.health import Health, Probe
from guards.routing import Candidate

log = structlog.get_logger()

LOOKS_MAX = 3  # at a replica that lost a leg, before the next round of probes
LOOK_AGAIN_S = 0.1


class Answer(Protocol):
    """A fetched answer, as far as the fleet reads it."""

    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...
    @property
    def reached(self) -> bool: ...
    @property
    def silent(self) -> bool: ...


@dataclass
class Replica:
    """One vLLM server.

    model: the model it is configured to serve; None where it is discovered.
    serves: each model it told of, with its length limit in tokens.
    """

    name: str
    standby: bool = False
    model: str | None = None
    serves: dict[str, int | None] = field(default_factory=dict)  # model -> window in tokens
    health: Health = field(default_factory=Health)
    load: int = 0

    def candidate(self) -> Candidate:
        return Candidate(self.name, bool(self.health.up), self.standby, self.load)


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


Fetch = Callable[[str, str, float], Awaitable[Answer]]  # replica name, path, timeout in seconds


class Fleet:
    """Knows every replica and its health. Probes run in `run`; suspicions are looked into at once.

    fetch: GET from a replica.
    on_change: told the replica's name and health at each change of the verdict.
    """

    def __init__(
        self,
        replicas: list[Replica],
        fetch: Fetch,
        on_change: Callable[[str, Health], None],
        *,
        probe_every_s: float,
        probe_timeout_s: float,
    ) -> None:
        self._replicas = {replica.name: replica for replica in replicas}
        self._fetch, self._on_change = fetch, on_change
        self._every_s, self._timeout_s = probe_every_s, probe_timeout_s
        self._looking: set[str] = set()
        self._looks: set[asyncio.Task[None]] = set()

    @property
    def models(self) -> list[str]:
        """Every model that is configured or was discovered, in a stable order."""
        named = [r.model for r in self._replicas.values() if r.model is not None]
        found = [m for r in self._replicas.values() if r.model is None for m in r.serves]
        return list(dict.fromkeys(named + found))

    def knows(self, model: str) -> bool:
        return any(self._for(model))

    def window(self, model: str) -> int | None:
        """The model's length limit in tokens; None while no replica has told it."""
        return next((w for r in self._for(model) if (w := r.serves.get(model)) is not None), None)

    def pick(self, model: str, avoid: frozenset[str]) -> str | None:
        """Name the replica for the next leg; None when there is none left to try."""
        return routing.pick((replica.candidate() for replica in self._for(model)), avoid)

    def enter(self, name: str) -> None:
        """A leg begins on this replica."""
        self._replicas[name].load += 1

    def leave(self, name: str) -> None:
        """A leg on this replica has ended."""
        self._replicas[name].load -= 1

    def not_ready(self) -> list[str]:
        """Say what keeps the gateway from serving; nothing when each model has a replica that is up."""
        if not self.models:
            return [self._state(replica) for replica in self._replicas.values()] or ["no replica is configured"]
        missing = [m for m in self.models if not any(r.health.up for r in self._for(m))]
        return [f"model {m}: " + ", ".join(map(self._state, self._for(m))) for m in missing]

    def all(self) -> list[Replica]:
        return list(self._replicas.values())

    async def run(self) -> None:
        """Probe every replica, for as long as the gateway lives; one that cannot be probed does not end the others."""
        while True:
            rounds = await asyncio.gather(*(self.probe(name) for name in self._replicas), return_exceptions=True)
            for name, fault in zip(self._replicas, rounds, strict=True):
                if isinstance(fault, Exception):
                    log.error("probe.fault", replica=name, exc_info=fault)
            await asyncio.sleep(self._every_s)

    def suspect(self, name: str) -> None:
        """A leg was lost there: look now, not at the next round."""
        if name not in self._looking:
            self._looking.add(name)
            task = asyncio.get_running_loop().create_task(self._look(name))
            self._looks.add(task)
            task.add_done_callback(self._looks.discard)

    async def probe(self, name: str) -> Probe:
        """Look at one replica once, and note what was seen."""
        replica = self._replicas[name]
        answer = await self._fetch(name, "/health", self._timeout_s)
        seen = _seen(answer)
        if seen is Probe.GOOD and (not replica.serves or not replica.health.up):
            seen = await self._models(replica)
        before, replica.health = replica.health, replica.health.after(seen)
        if (replica.health.up, replica.health.gone) != (before.up, before.gone):
            self._on_change(name, replica.health)
        return seen

    async def _look(self, name: str) -> None:
        """Look until it is clear: a server that is dying resets connections before it refuses them."""
        try:
            for _ in range(LOOKS_MAX):
                if await self.probe(name) not in (Probe.ODD, Probe.SILENT):
                    break
                await asyncio.sleep(LOOK_AGAIN_S)
        finally:
            self._looking.discard(name)

    async def _models(self, replica: Replica) -> Probe:
        answer = await self._fetch(replica.name, "/v1/models", self._timeout_s)
        if answer.status != 200:
            return _seen(answer)
        try:
            cards = msgspec.json.decode(answer.body, type=_Cards).data
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Probe.WRONG
        replica.serves = {card.id: card.max_model_len for card in cards}
        return Probe.GOOD if replica.model is None or replica.model in replica.serves else Probe.WRONG

    def _for(self, model: str) -> list[Replica]:
        return [r for r in self._replicas.values() if (r.model or model) == model and (r.model or model in r.serves)]

    @staticmethod
    def _state(replica: Replica) -> str:
        return f"{replica.name} {replica.health.why}"


def _seen(answer: Answer) -> Probe:
    """Read a verdict off an answer. Only what vLLM says of a dead engine is DEAD: that ends its streams."""
    if not answer.reached:
        return Probe.REFUSED
    if answer.silent:
        return Probe.SILENT
    verdicts = {200: Probe.GOOD, 401: Probe.KEY, 403: Probe.KEY, 500: Probe.DEAD, 503: Probe.DEAD}
    return verdicts.get(answer.status, Probe.ODD)
