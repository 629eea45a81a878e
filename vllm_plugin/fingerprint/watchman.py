"""A watchman reads the weights again, a little in every step, for changes of which nobody said anything."""

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from vllm_plugin.fingerprint.contents import SLICE_BYTES, TILE_BYTES, Contents, slice_sums, slices
from vllm_plugin.fingerprint.reading import Reading
from vllm_plugin.fingerprint.weights import Weight, WeightsRefused, weights_of


class Difference(NamedTuple):
    """A weight that is not what was read.

    first, end: the bytes of the slice in which it differs, in logical order; both 0 where the whole tensor is another:
        gone, new, or of another form. right_at: when this slice was last seen to be right, by the watchman's clock:
        what was computed since then is not to be trusted.
    """

    name: str
    first: int
    end: int
    why: str
    right_at: float


class Cycle(NamedTuple):
    """Once round. seconds: from beginning to end; busy_s: of those, spent here; read_bytes: all that was compared."""

    number: int
    seconds: float
    busy_s: float
    read_bytes: int
    steps: int
    differences: tuple[Difference, ...]


class Generation:
    """How often weights were said to have changed. `number` only grows; `whole` is false while a change goes on."""

    def __init__(self) -> None:
        self.number = 0
        self.whole = True

    def announce(self, whole: bool = True) -> int:
        """They may be others now; returns the new number."""
        self.whole = whole
        self.number += 1
        return self.number


@dataclass(frozen=True)
class Pace:
    """How much may be spent. step_s: at most in one step, but for the one slice that a step reads at least.

    share: of all time. So a cycle takes about bytes / speed / share, if steps are many: 16 GB at 10 GB/s and a
    hundredth are 160 s. slice_bytes: what is read at once.
    """

    step_s: float = 0.0005
    share: float = 0.01
    slice_bytes: int = SLICE_BYTES

    def __post_init__(self) -> None:
        if self.step_s < 0 or not 0 < self.share <= 1 or self.slice_bytes % TILE_BYTES or self.slice_bytes <= 0:
            raise ValueError(f"{self}: 0 <= step_s, 0 < share <= 1, slice_bytes a multiple of {TILE_BYTES}")


class Watchman:
    """Compares a model's weights with a reading of them, slice by slice, for ever.

        watchman = Watchman(models, Reading.of(weights_of(models)), generation)
        for difference in watchman.step():  # in every step, on the thread and stream that run the model
            ...                             # its pages are of no known model: announce, read anew, `renew`

    models: as for `weights_of`; kept weakly, as are their tensors: what was replaced can go. Names that are new are
        found when a cycle begins.
    generation: what is announced there is not a difference. From then on nothing is compared, until `renew` brings a
        reading of that generation; also what was compared while it was announced does not count.

    A difference is told once in each cycle. `last` is the last whole cycle.
    """

    def __init__(
        self,
        models: Mapping[str, torch.nn.Module],
        reading: Reading,
        generation: Generation,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._models = {prefix: weakref.ref(model) for prefix, model in models.items()}
        self._generation, self._clock = generation, clock
        self.pace = pace or Pace()
        self.last: Cycle | None = None
        self._number = 0
        self._not_before = clock()
        self.renew(reading)

    def renew(self, reading: Reading) -> None:
        """Compare with this from now on, which was read just now, in the generation of now."""
        self._reading, self._of = reading, self._generation.number
        self._renewed_at = np.array([self._clock() - reading.seconds])
        count = {name: -(-sums.size * TILE_BYTES // self.pace.slice_bytes) for name, sums in reading.sums.items()}
        self._right_at = {name: self._renewed_at.repeat(max(1, count[name])) for name in count}
        self._begin()

    @property
    def stale(self) -> bool:
        """Whether a change was announced, so that nothing is compared until `renew`."""
        return self._generation.number != self._of or not self._generation.whole

    @property
    def cycle_s(self) -> float:
        """How long a cycle takes at least: as its bytes were read the last time, at this share of the time."""
        busy_s = self.last.busy_s if self.last else self._reading.seconds
        return busy_s / self.pace.share

    def step(self) -> list[Difference]:
        """Read on, if it is time to; what differs. Raises nothing for weights that are gone: they differ."""
        begun = self._clock()
        if self.stale or begun < self._not_before:
            return []
        if self._ended:
            self._begin()
        found: list[Difference] = []
        while True:
            found += self._next()
            spent = self._clock() - begun
            if self._ended or spent >= self.pace.step_s:
                break
        if self.stale:  # while it was read
            return []
        self._busy_s += spent
        self._steps += 1
        self._differences += found
        self._not_before = begun + spent / self.pace.share
        if self._ended:
            self._end()
        return found

    def _begin(self) -> None:
        """A cycle begins: all that there was, and all that there is by now."""
        models = {prefix: model for prefix, weak in self._models.items() if (model := weak()) is not None}
        try:
            self._weights: dict[str, Weight] = weights_of(models)
        except WeightsRefused:  # all are gone
            self._weights = {}
        self._names = sorted({*self._reading.forms, *self._weights})
        self._at, self._slice = 0, 0
        self._begun, self._busy_s, self._bytes, self._steps = self._clock(), 0.0, 0, 0
        self._differences: list[Difference] = []
        self._seen: dict[object, str] = {}
        self._ended = False

    def _end(self) -> None:
        self._number += 1
        seconds = self._clock() - self._begun
        self.last = Cycle(self._number, seconds, self._busy_s, self._bytes, self._steps, tuple(self._differences))

    def _next(self) -> list[Difference]:
        """Compare one slice, and go on to the next; behind the last the cycle has ended."""
        name = self._names[self._at]
        contents, why = self._found(name)
        if contents is None:
            self._advance()
            return [Difference(name, 0, 0, why, float(self._right_at.get(name, self._renewed_at).min()))]
        parts = slices(contents, self.pace.slice_bytes)
        tied = self._seen.get(contents.place)
        if not parts or (tied and np.array_equal(self._reading.sums[tied], self._reading.sums[name])):
            self._advance()
            return []
        first, end = parts[self._slice]
        tiles = slice(first // TILE_BYTES, -(-end // TILE_BYTES))
        now, right_at = self._clock(), float(self._right_at[name][self._slice])
        same = np.array_equal(slice_sums(contents, first, end), self._reading.sums[name][tiles])
        if same and not self.stale:
            self._right_at[name][self._slice] = now
        self._bytes += end - first
        self._slice += 1
        if self._slice == len(parts):
            self._seen[contents.place] = name
            self._advance()
        return [] if same else [Difference(name, first, end, "other contents", right_at)]

    def _found(self, name: str) -> tuple[Contents | None, str]:
        """What is there to be compared, or what is wrong with all of it."""
        try:
            contents = self._weights[name].contents() if name in self._weights else None
        except WeightsRefused as error:
            return None, str(error)
        form = self._reading.forms.get(name)
        if contents is None or form is None:
            return None, "gone" if contents is None else "new"
        return (contents, "") if contents.form == form else (None, f"{contents.form}, was {form}")

    def _advance(self) -> None:
        self._at, self._slice = self._at + 1, 0
        self._ended = self._at == len(self._names)
