"""Was it the generator that set the limit? By its own lag and CPU, and by whom it could not let in."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from loadtests.traffic.record import Arrival, Record, Strain

LAG_S_MAX = 0.05  # from the time at which a client was due to the time at which it asked
LAG_SHARE_MAX, LAG_FORGIVEN = 0.01, 1  # of those that were due, that may be above; of few, so many
LATE_S_MAX = 0.1  # of a process's wake-ups, in a second: times of tokens are late by as much
LATE_SHARE_MAX = 0.1  # of seconds that may be worse
CPU_MAX, CPU_SHARE_MAX = 0.9, 0.1  # of a core, and of seconds that may be above


class Found(NamedTuple):
    """What is known of the generator. limited: why the run says less than it should; nothing where it does not.

    lag_*: None where nothing was due at any time, as in a closed loop.
    """

    lag_p50_s: float | None
    lag_p99_s: float | None
    late_p99_s: float
    cpu_mean: float
    cpu_max: float
    processes: int
    not_begun: int
    limited: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def found(arrivals: Sequence[Arrival], records: Sequence[Record], strains: Sequence[Strain]) -> Found:
    """Judge a run."""
    lags = sorted(_lags(arrivals, records))
    lates = sorted(one.late_max_s for one in strains)
    not_begun = sum(not one.begun for one in arrivals)
    late_p99_s, behind = at(lates, 0.99), [one for one in lags if one > LAG_S_MAX]
    why = []
    if not_begun:
        why.append(f"{not_begun} clients were not let in: as many were open as the generator may have")
    if len(behind) > max(LAG_FORGIVEN, LAG_SHARE_MAX * len(lags)):
        why.append(
            f"clients came late: {len(behind)} of {len(lags)} by more than {LAG_S_MAX * 1e3:.0f} ms, "
            f"by {lags[-1] * 1e3:.0f} at most"
        )
    if _share(lates, LATE_S_MAX) > LATE_SHARE_MAX:
        why.append(f"its processes woke up late: by {late_p99_s * 1e3:.0f} ms, p99, and times of tokens with them")
    cpus = [one.cpu for one in strains]
    if _share(cpus, CPU_MAX) > CPU_SHARE_MAX:
        why.append(
            f"its processes had no more of a core: above {CPU_MAX:.0%} in {_share(cpus, CPU_MAX):.0%} of all seconds"
        )
    return Found(
        at(lags, 0.5) if lags else None, at(lags, 0.99) if lags else None, late_p99_s,
        sum(cpus) / len(cpus) if cpus else 0.0, max(cpus, default=0.0),
        len({one.process for one in strains}), not_begun, why,
    )  # fmt: skip


def _lags(arrivals: Sequence[Arrival], records: Sequence[Record]) -> list[float]:
    """By how much each client was late that was due: the last of what it asked first, or it was not let in at all."""
    asked: dict[str, float] = {}
    for one in records:
        if one.lag_s is not None:  # later turns have no time at which they were due
            asked[one.session] = max(one.lag_s, asked.get(one.session, 0.0))
    return [*asked.values(), *(max(0.0, one.begun_s - one.due_s) for one in arrivals if not one.begun)]


def at(ranked: Sequence[float], share: float) -> float:
    """The value that a share of all are not above; 0 where there is none."""
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


def _share(values: Sequence[float], most: float) -> float:
    return sum(one > most for one in values) / len(values) if values else 0.0
