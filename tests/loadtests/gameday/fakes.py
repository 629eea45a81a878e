"""Scenarios and a fleet that need no vLLM; as a program, one that runs until it is broken off: FOLDER URL."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from loadtests.gameday.commands import play
from loadtests.gameday.fleet import Fleet
from loadtests.gameday.run import Run
from loadtests.gameday.scenario import Observations, Probe, Scenario
from loadtests.gateway_process import until
from tests.scenarios.asking import chat, order

STARTED_FILE = "started"


class NoFleet(Fleet):
    """Two servers that nobody started."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.engines = []
        self.closed = self.readied = 0

    @staticmethod
    def lacking() -> str:
        return ""

    def ready(self) -> None:
        self.readied += 1

    def close(self) -> None:
        self.closed += 1


def scenario(
    name: str = "fake",
    *,
    probes: Sequence[Probe] = (Probe("it holds", 8, 8),),
    steady: Sequence[Probe] = (Probe("it is well", 1, 1),),
    lacking: str = "",
    weight: int = 5,
    limit_s: float = 10.0,
    at: dict[str, Callable[[Any], Any]] | None = None,
) -> type[Scenario]:
    """One that sees what it is told. at: what a step does, with the scenario, before it answers."""
    steps = at or {}

    class Fake(Scenario):
        title, hypothesis, why, fleet = f"a fake called {name}", "all is well", "for tests", False

        def lacking(self) -> str:
            return lacking

        def steady(self) -> Observations:
            return self._step("steady")

        def inject(self) -> Observations:
            return self._step("inject")

        def observe(self) -> Observations:
            return self._step("observe")

        @staticmethod
        def judge_steady(seen: Observations) -> Sequence[Probe]:
            return steady

        @staticmethod
        def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
            if "judge" in steps:
                steps["judge"](None)
            return probes

        def _step(self, step: str) -> Observations:
            return {"step": step, "did": steps.get(step, lambda _: None)(self)}

    Fake.name, Fake.weight, Fake.limit_s = name, weight, limit_s
    return Fake


def endless(url: str, on_disk: Path) -> type[Scenario]:
    """It starts a gateway in front of a server, streams, says so by a file, and waits for ever."""

    def begin(one: Scenario) -> None:
        gateway = one.ground.gateway([url], model="stub", tokenizer=None)
        streams = one.ground.clients.begin(gateway.url, [chat(order(tokens=100_000, tokens_per_s=50))] * 4)
        until(lambda: streams.tokens > 10, 30.0, "tokens")
        on_disk.write_text(f"{gateway.process.pid} {gateway.port} {one.ground.scratch}")
        until(lambda: False, 600.0)

    return scenario("endless", at={"observe": begin}, limit_s=600.0)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    made: Any = partial(Run, make_fleet=NoFleet)
    chosen = {"endless": endless(sys.argv[2], folder / STARTED_FILE), "next": scenario("next")}
    sys.exit(play(chosen, folder / "report", 1, make_run=made))
