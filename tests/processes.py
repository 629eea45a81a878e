"""The gateway as a process of its own, as tests know it; it lies where `holdfast gameday` has it from."""

from collections.abc import Sequence
from typing import IO

from loadtests.gateway_process import (
    CLI_S_MAX,
    HOLDFAST,
    ROOT,
    START_S_MAX,
    Gateway,
    Process,
    id_of,
    until,
)
from tests import nursery

TRUSTING = {"breaker_calls": 100_000}  # `health` where one request after the other is broken at one server, on purpose

__all__ = ["HOLDFAST", "ROOT", "START_S_MAX", "TRUSTING", "ForkedGateway", "Gateway", "id_of", "until"]


class ForkedGateway(Gateway):
    """One that starts in a tenth of the time, where the command is `holdfast` itself, and nothing has it on a leash."""

    def _begin(self, arguments: Sequence[str], log: IO[bytes]) -> Process:
        if self._leashed or self._command != (str(HOLDFAST),):
            return super()._begin(arguments, log)
        return nursery.begin(arguments, log, log)

    def _run(self, arguments: Sequence[str]) -> str:
        return nursery.run(arguments, CLI_S_MAX)
