"""The figures in docs/alive.md: what was measured, from the evidence, between two marks."""

from typing import Any

from tests.prove import moves, recovery, session_cuts, session_drains, session_kills
from tests.prove.report import EVIDENCE

STEPS = tuple(one.NAME for one in (session_kills, session_cuts, session_drains, recovery))
PAGE = EVIDENCE.parent / "alive.md"
BEGIN, END = "<!-- measured: written by `make prove` -->", "<!-- end -->"


def write(done: dict[str, Any]) -> None:
    """Put them into the page."""
    text = PAGE.read_text()
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text("\n".join([text[:before], *figures(done), text[after:]]))


def shown() -> list[str]:
    """The lines that are in the page now."""
    text = PAGE.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()


def figures(done: dict[str, Any]) -> list[str]:
    """A table of what was measured: only of steps that were run."""
    rows = [*_equal(done), *_kills(done), *_cuts(done), *_drains(done), *_recovery(done)]
    return ["| | measured | step of `make prove` |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]


def _pair(values: list[float]) -> str:
    return f"{moves.milliseconds(values, 0.5)}, {moves.milliseconds(values, 0.99)}"


def _equal(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    rows: list[dict[str, Any]] = []
    for name in (session_kills.NAME, session_drains.NAME):
        rows += [row for one in done.get(name, {}).get("rounds", []) for row in one["streams"]]
    for of in ("waves", "alone"):
        rows += [row for wave in done.get(session_cuts.NAME, {}).get(of, []) for row in wave["streams"]]
    looks = done.get(recovery.NAME, {}).get("looks", [])
    rows += [look[name] for look in looks for name in (recovery.PAGES, recovery.WITHOUT)]
    if not rows:
        return []
    return [("streams that went on elsewhere, and those of them equal to the uninterrupted run, charged once",
             f"{sum(row['moved'] for row in rows)}, {sum(row['moved'] and row['equal'] for row in rows)}",
             "all of these")]  # fmt: skip


def _kills(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    name = session_kills.NAME
    if name not in done:
        return []
    with_pages, without = (session_kills.moved(done, arm) for arm in (session_kills.PAGES, session_kills.WITHOUT))

    def of(rows: list[dict[str, Any]], figure: str) -> str:
        return _pair([row[figure] for row in rows])

    again, beyond = session_kills.computed_again(done, session_kills.PAGES)
    return [
        ("kill -9 of vLLM: the client's pause, p50, p99", of(with_pages, "gap_s"), name),
        ("the same without a page store", of(without, "gap_s"), name),
        ("of it, until the loss is seen", of(with_pages, "lost_s"), name),
        ("of it, from the standby's being asked to the first new token", of(with_pages, "engine_s"), name),
        ("computed again; of it, beyond the pages that were not full", f"{again:.1%}; {beyond:.2%}", name),
    ]


def _cuts(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    name = session_cuts.NAME
    if name not in done:
        return []
    rows = [row for row in session_cuts.streams(done[name]) if row["moved"]]
    took = session_cuts.alone(done[name])
    return [
        ("a connection is cut: the client's pause, p50, p99", _pair([row["gap_s"] for row in rows]), name),
        ("one conversation alone, from the standby's being asked to its first new token", _pair(took), name),
    ]


def _drains(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    rounds = done.get(session_drains.NAME, {}).get("rounds", [])
    rows = [row for one in rounds for row in one["streams"] if row["moved"]]
    if not rows:
        return []
    said = "`holdfast drain`: the client's pause, p50, p99"
    return [(said, _pair([row["gap_s"] for row in rows]), session_drains.NAME)]


def _recovery(done: dict[str, Any]) -> list[tuple[str, str, str]]:
    if recovery.NAME not in done:
        return []
    longest = recovery.TOKENS[-1]
    loaded, computed = (recovery.median(done, longest, arm) for arm in (recovery.PAGES, recovery.WITHOUT))
    said = f"{recovery.WEIGHTS} weights, a prompt of {longest:,} tokens: first new token with pages, and without"
    times = f"{loaded * 1e3:.0f} ms, {computed:.1f} s: {recovery.ratio(done, longest):.0f} times"
    return [(said, times, recovery.NAME)]
