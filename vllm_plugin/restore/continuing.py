"""Whether this server continues requests: as its engines say, and as a canary has proved, once, when somebody asks."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from vllm_plugin import logs, versions
from vllm_plugin.restore import PROTOCOL, canary
from vllm_plugin.restore.emission import Emission
from vllm_plugin.restore.limits import REFUSED

TRIES = 2  # with other prompts: on a GPU, two tokens that are all but equally likely may change places
WAIT_S_MAX = 2.0  # that an answer waits for the canary; the next one has it

log = logs.logger("continuing")
UNTRIED = "it was not tried yet: ask again"


class Continuing:
    """Of one API server. client: of its engines. missing: of what is held on to in vLLM here.

    sings: what the canary does, see there.
    """

    def __init__(
        self, client: Any, missing: Sequence[str] = (), sings: Callable[..., Awaitable[bool]] = canary.sings
    ) -> None:
        self._client, self._sings = client, sings
        self._why_not = f"this vLLM has no {', '.join(missing)}" if missing else UNTRIED
        self._trial: asyncio.Task[None] | None = None
        self._seeds = False
        if missing:
            log.warning("holdfast.not_continuing", why=self._why_not)
        else:
            Emission(client, lambda: self._why_not, lambda: self._seeds)

    @classmethod
    def of(cls, client: Any) -> "Continuing":
        """Looks for what is held on to."""
        if not hasattr(client, "output_processor"):  # another one than AsyncLLM
            return cls(client, ["output_processor"])
        return cls(client, versions.missing_of(versions.CONTINUED_BY_SERVER))

    async def answer(self, halves: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """For the status. halves: what each engine, and each worker, says of it."""
        why_not = next((half["continues_not"] for half in halves if half["continues_not"]), "")
        if not why_not and self._why_not == UNTRIED:
            seeds = all(half.get("seeds", True) for half in halves)
            self._trial = self._trial or asyncio.ensure_future(self._try(seeds))
            await asyncio.wait([self._trial], timeout=WAIT_S_MAX)
        why_not = why_not or self._why_not
        if why_not:
            return {"continues": None, "continues_not": why_not}
        return {"continues": {"protocol": PROTOCOL, "seeds": self._seeds, "refused": list(REFUSED)}}

    async def _try(self, seeds: bool) -> None:
        try:
            if seeds and await self._proved(seeded=True):
                self._why_not, self._seeds = "", True
            elif await self._proved(seeded=False):
                self._why_not = ""
            else:
                self._why_not = "its canary went on otherwise than it had begun: see docs/continuing.md"
        except Exception as error:  # it is asked again: the engine was busy, or is dead
            log.warning("holdfast.canary_failed", error=type(error).__name__)
            self._trial = None
            return
        if self._why_not:
            log.error("holdfast.not_continuing", why=self._why_not)
        else:
            log.info("holdfast.continuing", seeds=self._seeds)

    async def _proved(self, *, seeded: bool) -> bool:
        for number in range(TRIES):
            if await self._sings(self._client, number, seeded=seeded):
                return True
        return False
