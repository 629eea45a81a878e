"""A vLLM server that hangs: it is stopped by SIGSTOP, in the middle of its streams, its connections open."""

import os
import signal

from gateway.local.engine import Engine
from loadtests.gameday.faults.cut import Healed


class EngineHang(Healed):
    """Its EngineCore alone, under an API server that says that all is well; or all of it, as the seed says."""

    name = "engine-hang"
    title = "a serving vLLM hangs"
    weight = 8
    why = "a GPU that hangs is as usual as one that dies, and no connection breaks to tell"
    limit_s = 300.0

    def hurt(self, victim: Engine) -> str:
        """Stop it; it goes on at the end of the scenario at the latest."""
        self._victim = victim
        self.ground.cleanup.callback(self.heal)
        if self.ground.rng.random() < 0.5:
            os.kill(victim.core_pid, signal.SIGSTOP)
            return "SIGSTOP to its EngineCore alone"
        victim.kill(signal.SIGSTOP)
        return "SIGSTOP to its process group"

    def heal(self) -> None:
        """Let all of it go on."""
        self._victim.kill(signal.SIGCONT)
