"""What a page store keeps of a public trace, beside a copy for each session, and what a bounded one finds again.

    python -m tests.prove store-trace                 conversations of our own, seeded
    python -m tests.prove store-trace --trace FILE    Mooncake's (*.jsonl)
"""

from pathlib import Path
from typing import Any

from tests.prove.plots import svg
from tests.prove.report import EVIDENCE
from tests.prove.state import SEED, keep, provenance, results, say
from tests.prove.vllm_plugin import measured

NAME = "store-trace"
REQUESTS = 20_000  # at most
RESEARCH = 0.8483
LIMIT_S = 900.0


def run(trace: Path | None = None, requests: int = REQUESTS) -> None:
    """All of it; a trace that is named replaces one that is not."""
    name = trace.stem if trace else f"drawn, seed {SEED}"
    before = results().get(NAME, {"trace": "", "at_most": 0})
    if before["at_most"] >= requests and (trace is None or before["trace"] == name):
        return
    say(f"{NAME}: {name}")
    said = ["--requests", str(requests), "--seed", str(SEED), *(["--trace", str(trace.resolve())] if trace else [])]
    found = measured("tests.vllm_plugin.store.replay", *said, limit_s=LIMIT_S)
    keep(NAME, {"on": provenance(), "trace": name, "at_most": requests, **found})


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured. How much is saved is the trace's, and reported."""
    if NAME not in done:
        return {}
    found = done[NAME]
    return {
        f"of the trace «{found['trace']}» ({found['requests']:,} requests, {found['sessions']:,} sessions) the store "
        f"keeps each page once: {_less(found, 'asked'):.1%} less than a copy for each request, "
        f"{_less(found, 'of_sessions'):.1%} less than one for each session": found["stored"] == found["unique"],
        "and every page that was asked for again was there": found["hit"] == found["hit_possible"],
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words and as a plot."""
    if NAME not in done:
        return []
    found = done[NAME]
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    (EVIDENCE / "store.svg").write_text(_drawn(found))
    return [
        "## Pages that are shared",
        "",
        f"{found['on']}. The trace «{found['trace']}»: {found['asked']:,} blocks of {found['block_tokens']} tokens in "
        f"{found['requests']:,} prompts, a small page for each block, under the trace's own clock. A request is of the "
        "session whose whole prompt it goes on with. Answers are in it as far as later prompts contain them.",
        "",
        "| | pages | the store's are less by |",
        "| --- | --- | --- |",
        f"| a copy for each request | {found['asked']:,} | {_less(found, 'asked'):.2%} |",
        f"| a copy for each session | {found['of_sessions']:,} | {_less(found, 'of_sessions'):.2%} |",
        f"| the store | {found['stored']:,} | |",
        "",
        f"The research that this is beside names {RESEARCH:.2%}. It is a figure of its traces: how much sessions share "
        "is nothing that a store has a say in; each page is there once, which is as few as there can be.",
        "",
        f"Bounded stores, the first {found['bounded_requests']:,} requests: of {found['bounded_asked']:,} blocks "
        f"{found['bounded_hit']:,} had been asked for before ({found['bounded_hit'] / found['bounded_asked']:.1%}). "
        "Found again, of those; «plain LRU» is reckoned, with as many pages as the store ever had:",
        "",
        "| room, of what all pages need | pages | by heat of sessions (the store) | by plain LRU of pages | shed |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {one['share']:.0%} | {one['pages_max']:,} | {one['hit'] / found['bounded_hit']:.1%} | "
          f"{one['lru_hit'] / found['bounded_hit']:.1%} | {one['shed']:,} |" for one in found["bounded"]),
        "",
        "![Found again by room](store.svg)",
        "",
    ]  # fmt: skip


def _less(found: dict[str, Any], than: str) -> float:
    return 1 - found["stored"] / found[than]


def _drawn(found: dict[str, Any]) -> str:
    lines = {}
    for name, key in (("heat of sessions", "hit"), ("plain LRU", "lru_hit")):
        points = [(100 * one["share"], 100 * one[key] / found["bounded_hit"]) for one in found["bounded"]]
        lines[name] = [*points, (100.0, 100.0)]
    return svg("Pages found again, percent of those asked for before", "room, percent of what all pages need", lines)
