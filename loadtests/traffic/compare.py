"""Two reports side by side: what is better in the second, what is worse, and how sure that is.

Both runs are cut into slices of time. The medians of a measure over the slices are compared, by a bootstrap interval of
95 % on their difference: only what does not touch zero there, and is more than a trifle, is called better or worse.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from loadtests.traffic.report import FORMAT
from loadtests.traffic.spread import Interval, difference

TRIFLE = 0.02  # of the first median
SLICES_MIN = 4
# Of what was asked for: else two different things are compared.
ALIKE = ("scenarios", "rates_per_s", "sla", "model", "tenants", "trace_sha256")
ALIKE_OPTIONS = (
    "each_s", "size", "context", "think_s", "speed", "rows", "free_length", "no_ids", "tool_calls", "words_per_token",
    "patience_s", "in_flight",
)  # fmt: skip


class NoReport(ValueError):
    """A file that is no report of a run."""


class Line(NamedTuple):
    """One measure. verdict: "better", "worse", "same" (within the spread), or "unknown" where too little is known."""

    name: str
    unit: str
    before: float | None
    after: float | None
    change: Interval | None
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict() | {"change": self.change.as_dict() if self.change is not None else None}


def _of(row: str, quantile: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda one: one[row][quantile]


def _failed(one: dict[str, Any]) -> float | None:
    return one["errors"] / one["requests"] if one["requests"] else None


def _late(one: dict[str, Any]) -> float | None:
    return one["gap_max_s"] if one["requests"] else None


MEASURES: tuple[tuple[str, str, int, Callable[[dict[str, Any]], float | None]], ...] = (
    *(
        (f"{row} {quantile}", "s", -1, _of(row, quantile))
        for row in ("TTFT", "ITL", "TPOT", "E2E")
        for quantile in ("p50", "p90")
    ),
    ("longest gap", "s", -1, _late),
    ("goodput", "per s", 1, lambda one: one["goodput_per_s"]),
    ("tokens out", "per s", 1, lambda one: one["tokens_per_s"]),
    ("failed", "of requests", -1, _failed),
)


def load(path: Path) -> dict[str, Any]:
    """Read a report's JSON. Raises NoReport."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        if found["format"] != FORMAT or not found["slices"]:
            raise ValueError(f"its format is {found['format']}, not {FORMAT}")
        unlike(found, found)
        bool(found["generator"]["limited"])
        for *_, of in MEASURES:
            sum(value for one in found["slices"] if (value := of(one)) is not None)
    except RecursionError:
        raise NoReport(f"{path}: nested too deeply") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise NoReport(f"{path}: not the JSON of a load report: {why}") from None
    return found


def unlike(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What was asked of one run and not of the other; seeds may differ."""
    one, other = before["head"], after["head"]
    pairs = [(name, *(run.get(name, "") for run in (one, other))) for name in ALIKE]
    if not any((one["rates_per_s"], other["rates_per_s"], one.get("trace_sha256"))):  # a closed loop
        pairs.append(("users", one.get("users"), other.get("users")))
    options = [run["options"] for run in (one, other)]
    pairs.append(("--direct", *(bool(each.get("direct")) for each in options)))  # wherever: the load is twice as large
    pairs += [(f"--{name.replace('_', '-')}", *(each.get(name) for each in options)) for name in ALIKE_OPTIONS]
    return [f"{name}: {first} and {second}" for name, first, second in pairs if first != second]


def lines(before: dict[str, Any], after: dict[str, Any]) -> list[Line]:
    """All measures, in their order."""
    return [_line(name, unit, sign, of, before["slices"], after["slices"]) for name, unit, sign, of in MEASURES]


def _line(name: str, unit: str, sign: int, of: Callable[[dict[str, Any]], float | None], *slices: Any) -> Line:
    first, second = ([value for one in given if (value := of(one)) is not None] for given in slices)
    change = difference(first, second)
    if change is None or change.values < SLICES_MIN:
        return Line(name, unit, _middle(first), _middle(second), change, "unknown")
    base = _middle(first) or 0.0
    if change.low <= 0 <= change.high or abs(change.median) <= TRIFLE * abs(base):
        return Line(name, unit, base, _middle(second), change, "same")
    return Line(name, unit, base, _middle(second), change, "better" if change.median * sign > 0 else "worse")


def _middle(values: list[float]) -> float | None:
    ranked = sorted(values)
    count = len(ranked)
    return (ranked[(count - 1) // 2] + ranked[count // 2]) / 2 if ranked else None
