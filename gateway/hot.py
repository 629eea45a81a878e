"""Hot standby: sessions of some tiers keep their pages loaded at a second replica; going on there loads nothing.

It costs that replica cache room for the whole session, and, of what its page store does not have yet, the computing.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf

import structlog

from gateway.homes import Homes, Lodger
from gateway.move import target
from gateway.slices import in_turns
from gateway.stream.call import Call
from gateway.turns import Turn, Turns
from gateway.warming import Outcome, Warmer, takes
from guards.kinship import between
from guards.warmth import Policy

log = structlog.get_logger()

LOOK_S = 0.25  # between looks at what streams have by now
BUSY_MAX = 64  # warmings that run or wait; beyond, the next look sees to it
CHOICES_MAX = 4  # of one request that are loaded


class Hot:
    """Looks at the streams of sessions that a policy is for, and at their ends. policies: by tier."""

    def __init__(
        self,
        turns: Turns,
        homes: Homes,
        warmer: Warmer,
        policies: Mapping[str, Policy],
        clock: Callable[[], float],
    ) -> None:
        self._turns, self._homes, self._warmer, self._policies = turns, homes, warmer, dict(policies)
        self._fleet, self._clock = turns.fleet, clock
        self._busy: set[asyncio.Task[None]] = set()
        self._last: dict[Lodger, tuple[Call, Sequence[Sequence[int]]]] = {}  # turns that ended while they were loaded
        self._at_s: dict[Call, float] = {}  # when a stream that runs was loaded last

    async def run(self) -> None:
        """Look for as long as the gateway lives."""
        while self._policies:
            await asyncio.sleep(LOOK_S)
            try:
                async for turn in in_turns(list(self._turns.running)):
                    self.look(turn)
            except Exception as error:  # a bug must not be the end of it
                log.error("hot.fault", exc_info=error)

    def look(self, turn: Turn) -> None:
        """Have a stream's pages loaded, where enough came since they were."""
        policy, lodger, answer = self._policies.get(turn.rank.name), turn.lodger, turn.answer
        if policy is None or lodger is None or answer is None or not answer.prompt_known:
            return
        tokens, now_s = answer.prompt_tokens + answer.completion_tokens, self._clock()
        if policy.due(tokens, lodger.warmed, now_s - self._at_s.get(turn.call, -inf)):
            self._at_s[turn.call] = now_s
            self._begin(lodger, turn.call, answer.so_far())

    def ended(self, turn: Turn) -> None:
        """A turn has ended: the next one begins with all of it."""
        self._at_s.pop(turn.call, None)
        lodger, answer = turn.lodger, turn.answer
        if lodger is not None and answer is not None and turn.rank.name in self._policies:
            if lodger.warming:
                self._last[lodger] = turn.call, answer.so_far()
            self._begin(lodger, turn.call, answer.so_far())

    def close(self) -> None:
        """Load no more."""
        self._last.clear()
        for task in self._busy:
            task.cancel()

    def _begin(self, lodger: Lodger, call: Call, so_far: Sequence[Sequence[int]]) -> None:
        if not so_far or lodger.warming or len(self._busy) >= BUSY_MAX or (name := self.standby(lodger)) is None:
            return
        lodger.warming = True
        task = asyncio.create_task(self._warm(lodger, call, name, so_far[:CHOICES_MAX]))
        self._busy.add(task)
        task.add_done_callback(partial(self._over, lodger))

    async def _warm(self, lodger: Lodger, call: Call, name: str, so_far: Sequence[Sequence[int]]) -> None:
        """Load it; from then on it is where that session goes next, if its replica is lost."""
        for ids in so_far:
            warmed = await self._warmer.warm(name, call, ids)
            if warmed.outcome is not Outcome.LOADED or lodger.replica == name:
                return
            lodger.standby, lodger.warmed = name, max(len(ids), lodger.warmed if lodger.standby == name else 0)
            if call in lodger.running:
                call.home, call.ahead = name, len(ids)

    def _over(self, lodger: Lodger, task: "asyncio.Task[None]") -> None:
        lodger.warming = False
        self._busy.discard(task)
        if (last := self._last.pop(lodger, None)) is not None:
            self._begin(lodger, *last)
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("hot.fault", exc_info=fault)

    def standby(self, lodger: Lodger) -> str | None:
        """Name the replica that is to have its pages: the one that has, as long as it is well."""
        if lodger.replica is None:
            return None
        home = self._fleet.named(lodger.replica)
        if lodger.standby is not None:
            has = self._fleet.named(lodger.standby)
            same = has.stores and has.fingerprints == home.fingerprints
            now_s = self._fleet.now_s()
            alike = not between([home.origin(lodger.model, now_s)], has.like(lodger.model, now_s))
            if same and alike and takes(has, self._warmer.bounds.per_replica):
                return has.name
        return target(self._fleet, home, lodger.model)
