"""What replication costs, what a bad page store does to serving, and what loading sessions does to running streams."""

import statistics
from itertools import pairwise
from typing import Any

from tests.prove.state import keep, provenance, results, say
from tests.prove.vllm_plugin import measured

NAME = "replication"
PROGRAM = "replication"
JUDGED = "hundred-million"
# Of each run: its kind, the size of its model, and how many pairs. One that loads sessions has: how many, of how many
# tokens.
RUNS: dict[str, tuple[str, ...]] = {
    "lmdb": ("--kind", "lmdb", "--size", JUDGED, "--pairs", "4"),
    "redis": ("--kind", "redis", "--size", JUDGED, "--pairs", "3"),
    "full": ("--kind", "full", "--size", "tiny", "--pairs", "3"),
    "restore": ("--kind", "restore", "--size", "tiny", "--sessions", "8", "--tokens", "3000"),
}
LIMIT_S = 600.0
COST_MAX = 0.02
BAD_COST_MAX = 0.1  # of throughput, that a bad store may cost besides what two rounds without one differ by
LOST = ("shed", "lost", "failed")

Pair = dict[str, dict[str, Any]]


def run() -> None:
    """Each kind in a process of its own, one after the other."""
    if NAME in results():
        return
    done = {}
    for name, arguments in RUNS.items():
        say(f"{NAME}: {name}")
        done[name] = measured(PROGRAM, *arguments, limit_s=LIMIT_S)
    keep(NAME, {"on": provenance(), "runs": done})


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    if NAME not in done:
        return {}
    runs, found = done[NAME]["runs"], {}
    for name in ("lmdb", "redis"):
        pairs = runs[name]["pairs"]
        for what, field in (("throughput", "tokens_per_s"), ("p99 between tokens", "gap_p99_s")):
            cost, blur = _cost(pairs, field), _blur(pairs, field)
            found[
                f"replication to {name} costs {cost:+.1%} of {what}, where two rounds without it differ by {blur:.1%}; "
                f"at saturation, a {JUDGED} model; goal: below {COST_MAX:.0%}"
            ] = cost < COST_MAX + blur
    bad = {"full": runs["full"]["pairs"]} | {name: runs["redis"][name] for name in ("slow", "stopped")}
    for name, pairs in bad.items():
        on = [pair["on"] for pair in pairs]
        cost, blur = _cost(pairs, "tokens_per_s"), _blur(runs["redis"]["pairs"], "tokens_per_s")
        ended, asked = (sum(one[count] for one in on) for count in ("ended_well", "asked"))
        lost = sum(one[count] for one in on for count in LOST)
        found[
            f"with a store that is {name}, {ended} of {asked} requests ended well, at {cost:+.1%} of throughput; "
            f"{lost} pages or failures were counted"
        ] = ended == asked and cost < BAD_COST_MAX + blur and (lost > 0 or name == "slow")
    corrupt = runs["lmdb"]["corrupt"]
    found[
        f"with a store whose pages were all damaged, {corrupt['same_answers']} of {corrupt['asked']} answers were the "
        f"same ones; {corrupt['holdfast_pages_corrupt']:.0f} pages were found bad, none was used"
    ] = (
        corrupt["same_answers"] == corrupt["asked"]
        and corrupt["holdfast_pages_corrupt"] > 0
        and corrupt["holdfast_pages_loaded"] == 0
    )
    return found | _restored(runs["restore"])


def _restored(one: dict[str, Any]) -> dict[str, bool]:
    alone, loading, computing = (one[name] for name in ("alone", "loading", "computing"))
    return {
        f"while {one['sessions']} sessions of {one['tokens']} tokens were loaded, a running stream waited "
        f"{1e3 * loading['p99_s']:.1f} ms between tokens at p99 and {1e3 * loading['most_s']:.1f} ms at most; "
        f"{1e3 * alone['p99_s']:.1f} ms at p99 alone, {1e3 * computing['most_s']:.0f} ms at most while they were "
        f"computed; {one['pages_loaded']:.0f} of {one['pages']} pages came from the store": (
            one["pages_loaded"] == one["pages"] and loading["most_s"] < computing["most_s"] / 2
        )
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    if NAME not in done:
        return []
    runs = done[NAME]["runs"]
    tails = runs["lmdb"]["tails"]
    found = [
        "## Replication",
        "",
        f"{done[NAME]['on']}. Rounds of 16 requests at once, as many as may run, of 100 tokens each that nobody has "
        "seen, with 32 tokens of answer. «Off» is the same engine in the same process, which gives its store nothing; "
        "the two take turns. What is in three processes in a server shares one here, with the store's threads.",
        "",
        "| | pairs | throughput | p99 between tokens | processor | saved | shed | lost | failures |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        _row("LMDB", runs["lmdb"]["pairs"]),
        _row("Redis", runs["redis"]["pairs"]),
        _row("full (LMDB, tiny model)", runs["full"]["pairs"]),
        _row("slow: stopped for 200 of 250 ms (Redis)", runs["redis"]["slow"]),
        _row("stopped: killed (Redis)", runs["redis"]["stopped"]),
        "",
        "The partial tail is not replicated. What that costs: the first token of a prompt whose pages are there "
        f"comes after {1e3 * tails['1_s']:.0f} ms where one token is left to compute, after "
        f"{1e3 * tails['31_s']:.0f} ms where 31 are, the most there can be with pages of 32 ({JUDGED} model).",
        "",
    ]
    one = runs["restore"]
    return [
        *found,
        f"## A running stream, while {one['sessions']} sessions of {one['tokens']} tokens come (tiny model)",
        "",
        "| | p50 between tokens | p99 | most | first token of the last session |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {1e3 * at['p50_s']:.1f} ms | {1e3 * at['p99_s']:.1f} ms | {1e3 * at['most_s']:.1f} ms | "
            + (f"{at['first_token_s']:.2f} s |" if at["first_token_s"] else "- |")
            for name, at in ((name, one[name]) for name in ("alone", "loading", "computing"))
        ),
        "",
    ]


def _row(name: str, pairs: list[Pair]) -> str:
    on = [pair["on"] for pair in pairs]
    costs = [f"{_cost(pairs, field):+.1%}" for field in ("tokens_per_s", "gap_p99_s", "cpu_s")]
    counts = [str(sum(one[count] for one in on)) for count in ("put", "shed", "lost", "failed")]
    return " | ".join([f"| {name}", str(len(pairs)), *costs, *counts]) + " |"


def _cost(pairs: list[Pair], field: str) -> float:
    """How much worse it is with replication, as a share: the median of pairs."""
    return statistics.median(_ratio(pair["on"][field], pair["off"][field], field) for pair in pairs)


def _blur(pairs: list[Pair], field: str) -> float:
    """By how much two rounds without it differ, as a share: the median."""
    off = [pair["off"][field] for pair in pairs]
    return statistics.median([abs(_ratio(*two, field)) for two in pairwise(off)] or [0.0])


def _ratio(one: float, other: float, field: str) -> float:
    return other / one - 1 if field == "tokens_per_s" else one / other - 1
