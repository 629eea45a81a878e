"""What the proofs have shown so far, kept so that an interrupted run goes on where it was."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".cache" / "prove"
SEED = 20261121


def results() -> dict[str, Any]:
    """What was shown so far, by the name of the step."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(STATE.glob("*.json"))}


def keep(name: str, result: Any) -> None:
    """Keep one step's result, whole or not at all."""
    scratch = STATE / f"{name}.tmp"
    scratch.write_text(json.dumps(result))
    scratch.rename(STATE / f"{name}.json")


def say(note: str) -> None:
    """Tell progress."""
    print(f"{time.strftime('%H:%M:%S')}  {note}", file=sys.stderr, flush=True)


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of them stay within."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def provenance() -> str:
    """When, and of which commit, a result is."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    head = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return f"{time.strftime('%Y-%m-%d')} at {head.stdout.strip() or 'no commit'}"
