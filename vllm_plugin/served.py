"""What this worker computes pages with: the model that is loaded, and whether it still is the one that was read.

Pages are bound to the fingerprint of what was read. Three things end it, each found before or in the step that would
use a page of before:

1. vLLM says that weights change (`announce`), or may have (`look(again=True)`): they are read before the next pass.
2. A request brings an adapter whose name and path stood for other contents before (`look`).
3. Nobody says anything: the watchman finds it (`watch`), within a cycle, and can say since when it may be so.
"""

import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from vllm_plugin import logs
from vllm_plugin.fingerprint import (
    FINGERPRINT_BYTES,
    Fingerprint,
    Generation,
    Pace,
    Reading,
    Reason,
    Watchman,
    WeightsRefused,
    adapter_contents,
    weights_of,
)

log = logs.logger("served")

ADAPTERS_MAX = 1024  # whose contents are remembered; at one more, all are forgotten, and all pages with them

Models = Callable[[], Mapping[str, Any]]
Adapters = Callable[[], Iterable[tuple[object, Any]]]


class Known(NamedTuple):
    """An adapter as it was seen last: the very object, which vLLM may let go, and what is in it."""

    adapter: "weakref.ref[Any]"
    contents: bytes


class Served:
    """models: asked for before each reading. facts: of `facts_of`. rank, ranks: of the worker, among its engine's.

    adapters: those of this step's requests, each with what names it in the hashes of its tokens. watch_share: of all
    time, for the watchman; with 0 there is none. Raises WeightsRefused, FactRefused.

    id: 32 bytes, with which pages are sealed now. settled: whether the weights are whole, and could be read. While they
    are not, `id` is of nothing, and new after each step of the change: what is computed then is not found afterwards.
    changes: how often it became another.
    """

    id: bytes

    def __init__(
        self,
        models: Models,
        facts: Mapping[str, Any],
        *,
        rank: int = 0,
        ranks: int = 1,
        adapters: Adapters = tuple,
        watch_share: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._models, self._facts, self._rank, self._ranks = models, facts, rank, ranks
        self._adapters, self._clock = adapters, clock
        self._pace = Pace(share=watch_share) if watch_share else None
        self._known: dict[object, Known] = {}
        self._generation = Generation()
        self._told = 0  # the generation that `id` is of
        self.settled, self.changes = True, 0
        self._read()

    @property
    def read_s(self) -> float:
        """How long the last reading took."""
        return self._reading.seconds

    @property
    def cycle_s(self) -> float | None:
        """How long it takes at most until a change that nobody announced is found, in a server that is busy."""
        if self._watchman is None:
            return None
        last = self._watchman.last
        return max(self._watchman.cycle_s, last.seconds if last else 0.0)

    def announce(self, reason: Reason) -> None:
        """Weights changed, or are about to. To be called on any thread; nothing is read yet."""
        if reason.changes == "weights":
            self._generation.announce(whole=reason.whole)

    def look(self, again: bool = False) -> bool:
        """Before a forward pass: whether pages of before are another model's. again: read, though nobody announced it.

        Waits for the reading where one is due.
        """
        if again and self._generation.whole:
            self._generation.announce()
        other = self._adapters_are_others()
        if self._generation.number != self._told:
            other = self._renewed() or other
        self.changes += other
        return other

    def watch(self) -> float | None:
        """After one: None, or weights differ that nobody announced: since when at the earliest, by the clock."""
        found = self._watchman.step() if self._watchman is not None and self.settled else []
        if not found:
            return None
        self._generation.announce()
        self.changes += self._renewed()
        return min(one.right_at for one in found)

    # ---- leaves

    def _renewed(self) -> bool:
        """Read anew; whether it is another model."""
        before, self._told = self.id, self._generation.number
        self.settled = self._generation.whole
        try:
            if self.settled:
                self._read()
        except WeightsRefused as error:  # such as the memory of a server that sleeps
            log.warning("holdfast.weights_unreadable", why=str(error))
            self.settled = False
        if not self.settled:
            self.id = secrets.token_bytes(FINGERPRINT_BYTES)
        return self.id != before

    def _read(self) -> None:
        models = self._models()
        self._reading = Reading.of(weights_of(models))
        self.id = Fingerprint.of(self._facts, self._reading, rank=self._rank, ranks=self._ranks).shard
        self._watchman = None
        if self._pace is not None:  # a new one, as the model may be another object
            self._watchman = Watchman(models, self._reading, self._generation, self._pace, self._clock)

    def _adapters_are_others(self) -> bool:
        """Whether what names an adapter stands for other contents than before."""
        other = False
        for name, adapter in self._adapters():
            known = self._known.get(name)
            if known is not None and known.adapter() is adapter:
                continue
            contents = adapter_contents(adapter)
            other = other or (known is not None and known.contents != contents)
            if known is None and len(self._known) >= ADAPTERS_MAX:
                self._known.clear()
                other = True
            self._known[name] = Known(weakref.ref(adapter), contents)
        return other


class Named:
    """In place of `Served`, where weights are not looked at: what was asked to be loaded, and never another."""

    settled, changes, read_s, cycle_s = True, 0, 0.0, None

    def __init__(self, facts: Mapping[str, Any], rank: int, ranks: int) -> None:
        nothing = Reading({}, {}, 0, 0.0)
        self.id = Fingerprint.of(facts, nothing, rank=rank, ranks=ranks).shard

    def announce(self, reason: Reason) -> None:
        """It is not listened to."""

    def look(self, again: bool = False) -> bool:
        """Nothing is looked at."""
        return False

    def watch(self) -> float | None:
        """Nor watched."""
        return None
