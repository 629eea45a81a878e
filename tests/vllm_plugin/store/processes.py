"""Processes that use a store, and die of SIGKILL."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


class Mortal:
    """One of them."""

    def __init__(self, url: str, seed: int = 0, what: str = "use") -> None:
        command = [sys.executable, "-m", "tests.vllm_plugin.store.mortal", url, str(seed), what]
        self.process = subprocess.Popen(command, cwd=ROOT, 
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def says(self, word: str) -> None:
        """Wait until it says so."""
        line = self.process.stdout.readline().strip()
        assert line == word, line or self.process.stderr.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
