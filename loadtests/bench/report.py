"""What was measured, for people: tables, and whether the promises hold here."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from loadtests.bench.load import Seen
from loadtests.bench.rounds import Results
from loadtests.traffic.ratios import paired

UNLIMITED, LEVELS, LEVELS_MAX = "holdfast, no limits", "holdfast, four levels", 1.15
LEVELS_REDIS, COMMANDS_MAX = "holdfast, four levels on Redis", 0.2  # for a request
POLICIES, POLICIES_MAX = (("holdfast", ""), ("holdfast, promises", ", with promises")), 1.10
POLICIES_OFF = "holdfast, policies off"
PASSTHROUGH, HOLDFAST, DIRECT, ROUTER = "aiohttp pass-through", "holdfast", "direct", "vllm-router"
BAREST, WORKERS = "aiohttp, barest", ("holdfast, two workers", "holdfast, two workers, pinned")
WORKERS_MIN = {"must": 1.8, "goal": 1.95}  # times what one does
DELAY_MS_MAX = (0.3, 2.0)  # p50 and p99, above direct
KB_MAX = 24.0  # per open stream
KB_STAYS_MAX = 1.0  # more of it for each stream, when as many are held once more

SHORT = "In short: milliseconds of CPU for a thousand, and memory"

Row = list[str]


class Table(NamedTuple):
    """One table. rows[0] is its head."""

    title: str
    rows: list[Row]


def tables(results: Results, units: dict[str, str]) -> list[Table]:
    """All that was measured: in short, then load by load. units: what each load counts."""
    found = [Table(_title(load, unit), _cpu_rows(results, load)) for load, unit in units.items()]
    return [
        Table(SHORT, _short_rows(results, units)),
        *found,
        Table("held: memory of an open stream", _memory_rows(results)),
    ]


def verdicts(results: Results) -> dict[str, bool]:
    """Each promise, and whether it held. A promise about what was not measured is left out."""
    found: dict[str, bool] = {}
    for load in ("plain", "paced"):
        for other, limit in ((PASSTHROUGH, "must"), (BAREST, "goal"), (ROUTER, "goal")):
            if (ratio := _ratio(results, load, other)) is not None:
                found[f"{limit}: CPU, {load}: {ratio:.2f} of {other}'s, at most 1.00"] = ratio <= 1.0
        for mine, where in ((LEVELS, ""), (LEVELS_REDIS, " leased from Redis")):
            if (ratio := _ratio(results, load, UNLIMITED, mine)) is not None:
                said = f"must: CPU, {load}, under four levels of limits{where}: {ratio:.2f} of none"
                found[f"{said}, at most {LEVELS_MAX:g}"] = ratio <= LEVELS_MAX
        for mine, how in POLICIES:
            if (ratio := _ratio(results, load, POLICIES_OFF, mine)) is not None:
                said = f"must: CPU, {load}, who is next and where it goes{how}: {ratio:.2f} of as it comes"
                found[f"{said}, at most {POLICIES_MAX:g}"] = ratio <= POLICIES_MAX
        if (commands := results.commands.get(LEVELS_REDIS, {}).get(load)) is not None:
            answers = sum(one.answers for one in results.seen[LEVELS_REDIS][load])
            each = commands / max(1, answers)
            found[f"must: {load}: {each:.4f} Redis commands for a request, below {COMMANDS_MAX:g}"] = (
                each < COMMANDS_MAX
            )
    for workers in WORKERS:
        found |= _two_workers(results, workers)
    if (delays := added_ms(results, HOLDFAST, "paced")) is not None:
        for name, limit_ms, values in zip(("p50", "p99"), DELAY_MS_MAX, zip(*delays, strict=True), strict=True):
            delay_ms = median(values)
            found[f"must: added delay, {name}: {delay_ms:.2f} ms, at most {limit_ms:g}"] = delay_ms <= limit_ms
    if held := results.memory.get(HOLDFAST):
        first, last = held[0], held[-1]
        found[f"must: an open stream takes {first.kb_per_stream:.1f} KB, at most {KB_MAX:g}"] = (
            first.kb_per_stream <= KB_MAX
        )
        if last is not first:
            more = (last.full - first.full) / first.streams / 1e3
            said = f"must: holding as many again takes {more:.1f} KB more for each, at most {KB_STAYS_MAX:g}"
            found[said] = more <= KB_STAYS_MAX
    failed = sum(one.failed for ones in results.seen.get(HOLDFAST, {}).values() for one in ones)
    found[f"must: every answer is whole: {failed} are not"] = failed == 0
    return found


def _two_workers(results: Results, workers: str) -> dict[str, bool]:
    """Two do twice as much as one but for what an answer costs more of CPU. Measured apart from what clients take.

    Two cores have to be enough for workers, upstream and clients together, so that answers in a second are fewer.
    """
    one, two = (results.seen.get(name, {}).get("plain", []) for name in (HOLDFAST, workers))
    if (ratio := _ratio(results, "plain", workers)) is None:
        return {}
    rate = median(_per_s(two)) / median(_per_s(one))
    cores = median(each.cpu_s / each.window_s for each in two)
    said = f"{2 * ratio:.2f} times one's answers for each second that both have a core (on two cores, of which"
    said += f" upstream and clients leave them {cores:.2f}: {rate:.2f} times as many)"
    name = workers.removeprefix("holdfast, ")
    return {f"{limit}: {name}: {said}, at least {times:g}": 2 * ratio >= times for limit, times in WORKERS_MIN.items()}


def _per_s(seen: Sequence[Seen]) -> list[float]:
    return [one.units / one.window_s for one in seen]


def added_ms(results: Results, peer: str, load: str) -> list[tuple[float, float]] | None:
    """For each round what a peer adds to p50 and to p99; None where there is nothing to compare with."""
    mine, direct = (results.seen.get(name, {}).get(load) for name in (peer, DIRECT))
    if not mine or not direct or peer == DIRECT:
        return None
    pairs = [(one, bare) for one, bare in zip(mine, direct, strict=False) if one.units and bare.units]
    return [(one.late_ms[0] - bare.late_ms[0], one.late_ms[1] - bare.late_ms[1]) for one, bare in pairs] or None


def markdown(table: Table) -> str:
    """The table as text."""
    head, *rows = table.rows
    lines = [head, ["---"] * len(head), *rows]
    return f"## {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Median, and smallest to largest."""
    ranked = sorted(values)
    if not ranked:
        return "–"
    if len(ranked) == 1:
        return f"{ranked[0]:.{digits}f}"
    return f"**{median(ranked):.{digits}f}** ({ranked[0]:.{digits}f}..{ranked[-1]:.{digits}f})"


def _title(load: str, unit: str) -> str:
    return f"{load}: CPU per thousand {unit}"


def _cpu_ms(seen: Sequence[Seen]) -> list[float]:
    """Milliseconds for a thousand units, one for each round."""
    return [one.cpu_s / one.units * 1e6 for one in seen if one.units and one.cpu_s]


def _ratio(results: Results, load: str, other: str, mine: str = HOLDFAST) -> float | None:
    """One's CPU as a share of another's: the median over rounds, each a pair measured side by side."""
    ours, theirs = (
        [(one.units, one.cpu_s) for one in results.seen.get(name, {}).get(load, [])] for name in (mine, other)
    )
    return median(pairs) if (pairs := paired(ours, theirs)) else None


def _short_rows(results: Results, units: dict[str, str]) -> list[Row]:
    """A row for each gateway; of plain requests only those that come as fast as they can."""
    loads = [load for load in units if load in ("plain", "paced", "dense")]
    rows = [["", *(f"{load}, ms / 1k {units[load]}" for load in loads), "KB / open stream"]]
    for peer, seen in results.seen.items():
        if peer == DIRECT:
            continue
        named = f"{peer} {results.versions.get(peer, '')}".rstrip()
        held = [f"{one.kb_per_stream:.1f}" for one in results.memory.get(peer, [])[:1]] or ["–"]
        rows.append([named, *(spread(_cpu_ms(seen.get(load, []))) for load in loads), *held])
    return rows


def _cpu_rows(results: Results, load: str) -> list[Row]:
    rows = [["", "CPU, ms", "per second", "cores", "waited", "p50, ms", "p99, ms", "added p50", "added p99", "failed"]]
    for peer, loads in results.seen.items():
        if seen := loads.get(load):
            added = list(zip(*(added_ms(results, peer, load) or []), strict=True)) or [(), ()]
            rows.append([
                peer, spread(_cpu_ms(seen)), f"{median(_per_s(seen)):.0f}",
                f"{median(one.cpu_s / one.window_s for one in seen):.2f}",
                f"{median(one.waited_s / one.window_s for one in seen):.2f}",
                *(spread((one.late_ms[which] for one in seen if one.units), 2) for which in (0, 1)),
                *(spread(one, 2) for one in added), str(sum(one.failed for one in seen)),
            ])  # fmt: skip
    return rows


def _memory_rows(results: Results) -> list[Row]:
    rows = [
        ["", "streams", "idle, MB", "all open, MB", "KB each", "after, MB", "held again, MB", "after, MB", "failed"]
    ]
    for peer, held in results.memory.items():
        first, again = held[0], held[1:2]
        rows.append([
            peer, str(first.streams), f"{first.idle / 1e6:.0f}", f"{first.full / 1e6:.0f}",
            f"**{first.kb_per_stream:.1f}**", f"{first.after / 1e6:.0f}",
            *([f"{again[0].full / 1e6:.0f}", f"{again[0].after / 1e6:.0f}"] if again else ["–", "–"]),
            str(sum(one.failed for one in held)),
        ])  # fmt: skip
    return rows
