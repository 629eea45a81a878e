"""kill -9 of the vLLM server that serves, in the middle of its streams."""

import signal

from gateway.local.engine import Engine
from loadtests.gameday.faults.cut import Cut


class EngineKill(Cut):
    """All of the server's processes at once."""

    name = "engine-kill"
    title = "kill -9 of a serving vLLM"
    weight = 10
    why = "in a fleet a server dies every day, and a stream that is cut cannot be asked for again unnoticed"
    limit_s = 300.0

    def hurt(self, victim: Engine) -> str:
        """No goodbye, no last words."""
        victim.kill(signal.SIGKILL)
        return "SIGKILL to its process group"
