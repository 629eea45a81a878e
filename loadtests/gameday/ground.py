"""Ground: what a scenario may use: servers, gateways, clients, seeded chance, and a stack of what to undo."""

import random
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from gateway.local.ports import free_ports
from loadtests.answers import Answer
from loadtests.gameday.fleet import Fleet
from loadtests.gameday.streams import Clients
from loadtests.gateway_process import Gateway, NotSeen, until

MODEL = "tiny"  # as it is served
SPARED = ("holdfast.yaml", "gateway.log", "data/journal.jsonl")  # evidence: of a gateway's folder, nothing else stays


class Ground:
    """For one scenario. `cleanup` is unwound after it, whatever became of it: last in, first out.

    fleet: the two servers, running where the scenario asked for them (`Scenario.fleet`).
    clients: that ask, and stream beside the fault.
    rng: chance by the seed and the scenario's name, so that a run can be had again.
    folder: of what is kept as evidence. scratch: of what is thrown away after the scenario.
    say: tells the operator how far it is.
    on: a fleet that serves others, where the operator named one; None on servers of our own.
    damaged: set by a scenario that sees what becomes of its fault while it still makes it (`inject`): from then on an
    error, or the end of its time, is a failure that counts.
    """

    def __init__(
        self, name: str, seed: int, folder: Path, scratch: Path, fleet: Fleet, clients: Clients,
        say: Callable[[str], None], on: Any = None,
    ) -> None:  # fmt: skip
        self.rng = random.Random(f"{seed} {name}")
        self.seed, self.folder, self.scratch, self.fleet, self.clients, self.say = (
            seed, folder, scratch, fleet, clients, say,
        )  # fmt: skip
        self.on = on
        self.damaged = False
        self.cleanup = ExitStack()
        self._gateways = 0

    def gateway(
        self, upstreams: Sequence[str] | None = None, reach: Callable[[Gateway], None] | None = None, **more: Any
    ) -> Gateway:
        """A gateway of this scenario's own, ready; it ends with the scenario.

        upstreams: by default the fleet's servers, of which the first is active and the others stand by, unless
        standby=False. reach: makes it reachable, where it is not. more: as for Gateway, and parts of holdfast.yaml.
        """
        self._gateways += 1
        folder = self.folder / f"gateway-{self._gateways}"
        folder.mkdir(parents=True)
        self.cleanup.callback(_only_evidence, folder)
        ours: dict[str, Any] = {"model": MODEL, "leashed": True, "wait": False}
        if "tokenizer" not in more:
            ours["tokenizer"] = self.fleet.tokenizer
        gateway = Gateway(folder, self.fleet.urls if upstreams is None else upstreams, **ours | more)
        self.cleanup.callback(_ended, gateway)
        if reach is not None:
            reach(gateway)
        gateway.wait_ready()
        return gateway

    def free_port(self) -> int:
        """A port of 127.0.0.1 that nobody has."""
        return free_ports(1)[0]


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    """A greedy streamed chat for the fleet's model."""
    body = {"model": MODEL, "temperature": 0, "stream": True, "messages": [{"role": "user", "content": prompt}]}
    return body | more


def cost(answer: Answer) -> int:
    """What an answer must have been charged, in tokens: its prompt, and the ids that came."""
    prompt: int = (answer.usage or {}).get("prompt_tokens") or len(answer.prompt_ids)
    return prompt + answer.tokens


def equal(wanted: Sequence[Answer], got: Sequence[Answer]) -> list[bool]:
    """Of each, whether it is its uninterrupted run to the token, text, ends and usage."""
    return [want.content == have.content for want, have in zip(wanted, got, strict=True)]


def charged(gateway: Gateway, answers: Sequence[Answer]) -> list[bool]:
    """Of each answer of this gateway, whether its request was settled once, for exactly what came. Waits a moment."""
    facts = []
    for answer in answers:
        try:
            facts.append(gateway.settled(answer.request_id).get("charged_tokens") == cost(answer))
        except (AssertionError, ValueError):  # none, or more than one
            facts.append(False)
    return facts


def booked(gateway: Gateway, key: str) -> bool:
    """Whether the ledger has charged a key of this gateway what its journal says, and holds nothing. Waits a moment."""

    def alike() -> bool:
        balance = gateway.balance(key)
        said = sum(fact["charged_tokens"] for fact in gateway.settlements(key))
        return balance.held == 0 and balance.spent == said

    try:
        return until(alike)
    except (NotSeen, ValueError):  # ValueError: it has no account
        return False


def _ended(gateway: Gateway) -> None:
    """Politely at first, and for sure."""
    with suppress(subprocess.TimeoutExpired):
        gateway.stop()


def _only_evidence(folder: Path) -> None:
    """Remove what is no evidence, such as ledgers and hashed keys."""
    spared = {folder / name for name in SPARED}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in spared:
            path.unlink()
