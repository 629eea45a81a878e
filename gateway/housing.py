"""Where sessions live, how they move, and what is loaded ahead for them: built together, for they need each other."""

import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from gateway.books.drained_file import DrainedFile
from gateway.config import Config
from gateway.fleet.inspector import Inspector
from gateway.fleet.replicas import Fleet
from gateway.homes import Homes
from gateway.hot import Hot
from gateway.moves import Moves
from gateway.salt import secret
from gateway.session_moves import SessionMoves
from gateway.stream.leg import Target
from gateway.stream.upstream import Upstream
from gateway.turns import Turns
from gateway.verdicts import Verdicts
from gateway.warming import Warmer
from gateway.watch.metrics import Metrics


class Housing:
    """moves: of whole servers. sessions: of single ones.

    home: the data directory that workers share: their sessions have one name.
    """

    def __init__(
        self,
        config: Config,
        home: Path,
        fleet: Fleet,
        inspector: Inspector,
        upstream: Upstream,
        targets: dict[str, Target],
        turns: Turns,
        listener: Verdicts,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._drained = DrainedFile(config.data)
        sticky = config.routing.sessions
        homes = turns.homes = Homes(fleet, secret(home), listener, clock, wall_ms, sticky=sticky)
        listener.lodged = homes.counts
        warmer = Warmer(fleet, upstream, targets, metrics, config.warming.bounds)
        drained = self._drained.write
        self.moves = Moves(fleet, inspector, upstream, listener, clock, homes=homes, warmer=warmer, changed=drained)
        self.sessions = SessionMoves(fleet, homes, upstream, warmer, listener, clock)
        policies = {one.name: one.hot_standby.policy for one in config.tiers if one.hot_standby is not None}
        self._hot = Hot(turns, homes, warmer, policies, clock)
        turns.ended = self._hot.ended

    def begin(self) -> None:
        """Go on draining what was drained when the gateway ended."""
        self.moves.restore(self._drained.read())

    def run(self) -> Coroutine[Any, Any, None]:
        """Load ahead, for as long as the gateway lives."""
        return self._hot.run()

    def close(self) -> None:
        """Move and load no more."""
        self.moves.close()
        self._hot.close()


def wall_ms() -> int:
    """Milliseconds since 1970: what generations are, so that they grow over restarts and between gateways."""
    return time.time_ns() // 1_000_000
