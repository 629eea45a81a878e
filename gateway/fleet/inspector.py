"""Asks replicas after their KV pages, again and again, and drains those whose memory looks broken."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from gateway.fleet.canary import Ask
from gateway.fleet.page_status import PATH, Plugin, read
from gateway.fleet.replica import Replica

log = structlog.get_logger()

ANSWER_S = 5.0  # for an answer: engines give one between two steps
FRESH_ROUNDS, FRESH_S = 3, 30.0  # of questions, and seconds: what was told before both is not relied on
LOOK_S = 0.5  # whether one is to be asked: at once when it came up
ABSENT_S = 60.0  # between questions to a server without the plugin


class Hears(Protocol):
    """Told of what follows from it."""

    def drained(self, replica: Replica, why: str) -> None:
        """It gets no new requests any more, or does again; for that reason."""


class Inspector:
    """Nothing that it hears is a verdict on whether a replica is up: that is the fleet's.

    ask: puts a small question to a replica. every_s: between questions to one replica, in seconds; 0: none is asked.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        ask: Ask,
        listener: Hears,
        clock: Callable[[], float],
        every_s: float,
    ) -> None:
        self._replicas = {one.name: one for one in replicas}
        self._ask, self._listener, self._clock = ask, listener, clock
        self._every_s = every_s

    async def run(self) -> None:
        """Ask for as long as the gateway lives; one that cannot be asked does not end the others."""
        while self._every_s:
            due = [one for one in self._replicas.values() if self._due(one)]
            faults = await asyncio.gather(*map(self.look, due), return_exceptions=True)
            for replica, fault in zip(due, faults, strict=True):
                if isinstance(fault, Exception):
                    log.error("inspector.fault", replica=replica.name, exc_info=fault)
            await asyncio.sleep(min(self._every_s, LOOK_S))

    async def look(self, replica: Replica) -> None:
        """Ask one replica once. There are three cases.

        1. No answer, or 503, as from engines in a long step: that is for the probes to judge, and what is known stays.
        2. No plugin, or nothing that can be read: noted. It does not clear a replica that is drained.
        3. A status: it may drain the replica, or bring it back, if its engines were started anew.
        """
        answer = await self._ask(replica.name, PATH, None, ANSWER_S)
        pages, now_s = replica.pages, self._clock()
        pages.asked_s = now_s
        if answer.silent or not answer.reached or answer.status >= 500:
            return
        if answer.status == 404:
            pages.plugin, pages.status = Plugin.NONE, None
            return
        status = read(answer.body, now_s) if answer.status == 200 else None
        if status is None:
            pages.plugin = Plugin.UNREADABLE
            return
        pages.plugin, pages.status, pages.fresh_s = Plugin.TOLD, status, max(FRESH_ROUNDS * self._every_s, FRESH_S)
        before = pages.corruption.drained
        pages.corruption.note(status.bad, status.engines, now_s)
        if pages.corruption.drained != before and (pages.corruption.drained or not replica.drained):
            self._listener.drained(replica, pages.corruption.drained or "its engine was started anew")

    def undrain(self, name: str) -> bool:
        """Let a replica have requests again; whether it was drained. Raises KeyError where there is none."""
        replica = self._replicas[name]
        if not replica.drained:
            return False
        replica.pages.corruption.forgive()
        self._listener.drained(replica, "an operator said so")
        return True

    def _due(self, replica: Replica) -> bool:
        pages = replica.pages
        if not replica.health.up:
            return False
        every_s = ABSENT_S if pages.plugin is Plugin.NONE else self._every_s
        return pages.asked_s < replica.since_s or self._clock() - pages.asked_s >= every_s
