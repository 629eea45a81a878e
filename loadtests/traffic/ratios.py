"""Gateways measured side by side: what Holdfast costs as a share of what others do, in two such runs.

Numbers of two runs cannot be compared: another day, another machine. Ratios taken within a run can, as far as they come
out alike each time; how far they do is what is shown here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import msgspec

MINE = "holdfast"
SAME = 0.06  # two processes of one build, side by side, differ by as much for as long as they live
LOOKS_MIN = 3
CPU_S_LEAST = 1e-6  # of a look: what costs less was not measured

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=float(1 << 53))]


class NoBench(ValueError):
    """A file that is not what `make bench` writes."""


class Look(msgspec.Struct):
    """One measurement of one load on one gateway."""

    units: Count
    cpu_s: Seconds


class Held(msgspec.Struct):
    """Bytes before streams were opened, and with all of them open."""

    streams: Count
    idle: Count
    full: Count


class Sides(msgspec.Struct):
    """What one run saw: of each gateway and load all looks, in their order; and its memory."""

    on: str
    commit: str
    rounds: int
    quick: bool
    ids_asked: bool
    cores: int
    machine: str
    seen: dict[str, dict[str, list[Look]]]
    memory: dict[str, list[Held]] = {}


class Share(NamedTuple):
    """A ratio of one run: the median over looks, the smallest and the largest. looks: how many."""

    median: float
    low: float
    high: float
    looks: int


class Ratio(NamedTuple):
    """Holdfast's part of another's, in both runs. what: a load's CPU, or memory; other: a gateway.

    apart: the second median over the first, less 1. verdict: "same" where the looks of both overlap, or where they are
    no further apart than two processes of one build are; else "better" or "worse"; "unknown" where looks are few, as
    those at memory are: a run holds its streams once from nothing.
    """

    what: str
    other: str
    before: Share | None
    after: Share | None
    apart: float | None
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        shares = {name: one and one._asdict() for name, one in (("before", self.before), ("after", self.after))}
        return self._asdict() | shares


def load(path: Path) -> Sides | None:
    """Read what `make bench` wrote; None for JSON of something else. Raises NoBench."""
    try:
        found = msgspec.json.decode(path.read_bytes())
        if not isinstance(found, dict) or "seen" not in found:
            return None
        return msgspec.convert(found, Sides)
    except OSError as error:
        raise NoBench(f"{path}: {error.strerror}") from None
    except msgspec.ValidationError as error:
        raise NoBench(f"{path}: not the JSON of make bench: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    except RecursionError:
        raise NoBench(f"{path}: nested too deeply") from None


def unlike(before: Sides, after: Sides) -> list[str]:
    """What the runs differ in, though ratios depend on it."""
    names = ("quick", "ids_asked", "cores", "machine")
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in names]
    return [f"{name}: {one} and {other}" for name, one, other in pairs if one != other]


def paired(ours: Sequence[tuple[int, float]], theirs: Sequence[tuple[int, float]]) -> list[float]:
    """One's CPU for a unit as a share of another's, look by look: both had the same neighbours. Of (units, seconds).

    Looks in which one of them did nothing, or took less than CPU_S_LEAST, are left out.
    """
    pairs = zip(ours, theirs, strict=False)
    return [
        (cpu_s / units) / (their_s / their_units)
        for (units, cpu_s), (their_units, their_s) in pairs
        if units and cpu_s >= CPU_S_LEAST and their_units and their_s >= CPU_S_LEAST
    ]


def ratios(before: Sides, after: Sides) -> Iterator[Ratio]:
    """Of all that one of them has measured: load by load, then memory."""
    others = [name for name in {**before.seen, **after.seen, **before.memory, **after.memory} if name != MINE]
    for name in {**before.seen.get(MINE, {}), **after.seen.get(MINE, {})}:
        for other in others:
            yield from _ratio(f"CPU, {name}", other, _cpu(before, name, other), _cpu(after, name, other))
    for other in others:
        yield from _ratio("memory", other, _memory(before, other), _memory(after, other))


def _cpu(run: Sides, name: str, other: str) -> Share | None:
    ours, theirs = (run.seen.get(peer, {}).get(name, []) for peer in (MINE, other))
    return _share(paired(*([(one.units, one.cpu_s) for one in looks] for looks in (ours, theirs))))


def _memory(run: Sides, other: str) -> Share | None:
    ours, theirs = (run.memory.get(peer, [])[:1] for peer in (MINE, other))  # the first time: nothing is there yet
    each = [[(one.full - one.idle) / one.streams for one in held if one.streams] for held in (ours, theirs)]
    return _share([one / two for one, two in zip(*each, strict=False) if one > 0 and two > 0])


def _share(values: Sequence[float]) -> Share | None:
    return Share(median(values), min(values), max(values), len(values)) if values else None


def _ratio(what: str, other: str, before: Share | None, after: Share | None) -> Iterator[Ratio]:
    """One, or none where nothing was measured."""
    if before is None or after is None:
        if before is not None or after is not None:
            yield Ratio(what, other, before, after, None, "unknown")
        return
    apart = after.median / before.median - 1
    if abs(apart) <= SAME or (before.low <= after.high and after.low <= before.high):
        verdict = "same"
    elif min(before.looks, after.looks) < LOOKS_MIN:
        verdict = "unknown"
    else:
        verdict = "better" if apart < 0 else "worse"
    yield Ratio(what, other, before, after, apart, verdict)
