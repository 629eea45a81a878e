"""Ten thousand clean requests in a crowd with little room: no alarm, and the answers of vLLM without the plugin."""

from typing import Any

from tests.prove.state import keep, provenance, results, say
from tests.prove.vllm_plugin import measured

NAME = "clean"
COUNT = 10_000
COMPARED_MIN = 500
EVERY = 10
EACH_S_MAX, START_S_MAX = 0.3, 180.0
CROWDS = {  # setting, and what more is said
    "greedy, prompts in pieces": ("recompute", []),
    "greedy, prompts in pieces, little scrubbing": ("default", []),
    "drawn by seed, some two answers": ("recompute", ["--drawn"]),
    "drawn by seed, some two answers, little scrubbing": ("default", ["--drawn"]),
}
ALARMS = {
    "holdfast_pages_corrupt": "corrupt", "holdfast_chains_broken": "chains broken",
    "holdfast_requests_recomputed": "recomputed", "holdfast_requests_aborted": "aborted",
    "holdfast_pages_evicted": "evicted", "holdfast_pages_withdrawn": "withdrawn",
}  # fmt: skip
WORK = {
    "holdfast_pages_sealed": "sealed", "holdfast_pages_verified": "verified", "holdfast_pages_scrubbed": "scrubbed",
    "holdfast_pages_loaded": "loaded", "holdfast_prefix_hit_tokens": "tokens hit", "vllm:num_preemptions": "preempted",
}  # fmt: skip


def run(count: int = COUNT) -> None:
    """All crowds, each with seeds of its own, and the same requests, one in ten, without the plugin."""
    if results().get(NAME, {"count": 0})["count"] >= count:
        return
    each, crowds = -(-count // len(CROWDS)), []
    for number, (words, (setting, more)) in enumerate(CROWDS.items()):
        say(f"{NAME}: {each} requests, {words}")
        said = ["--first", str(number * each), "--count", str(each), "--every", str(EVERY), *more]
        limit_s = START_S_MAX + EACH_S_MAX * each
        with_it = measured("clean", *said, "--setting", setting, limit_s=limit_s)
        without = measured("clean", *said, "--setting", "control", limit_s=limit_s)
        differing = [seed for seed, right in without["answers"].items() if with_it["answers"].get(seed) != right]
        crowds.append({
            "words": words, "requests": with_it["requests"], "counted": with_it["counted"],
            "compared": len(without["answers"]), "differing": differing,
        })  # fmt: skip
    keep(NAME, {"on": provenance(), "count": count, "crowds": crowds})


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    if NAME not in done:
        return {}
    crowds = done[NAME]["crowds"]
    compared = sum(one["compared"] for one in crowds)
    return {
        f"{COUNT:,} clean requests raise no alarm": sum(one["requests"] for one in crowds) >= COUNT
        and not any(one["counted"][name] for one in crowds for name in ALARMS),
        f"{compared} of them, one in {EVERY}, are answered as without the plugin": compared >= COMPARED_MIN
        and not any(one["differing"] for one in crowds),
        "some were preempted, and some read what others had left": all(
            sum(one["counted"][name] for one in crowds) > 0
            for name in ("vllm:num_preemptions", "holdfast_prefix_hit_tokens")
        ),
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    if NAME not in done:
        return []
    names = [*ALARMS, *WORK]
    return [
        "## Clean requests",
        "",
        f"{done[NAME]['on']}. Shared prefixes, prompts of 20 to 700 tokens, answers of 4 to 60, salts, 48 at once, and "
        "room for so few pages that requests are preempted and prefixes go to the page store and come back.",
        "",
        "| crowd | requests | " + " | ".join({**ALARMS, **WORK}[name] for name in names) + " | compared | differing |",
        "|" + " --- |" * (len(names) + 4),
        *(
            f"| {one['words']} | {one['requests']} | "
            + " | ".join(f"{one['counted'][name]:.0f}" for name in names)
            + f" | {one['compared']} | {len(one['differing'])} |"
            for one in done[NAME]["crowds"]
        ),
        "",
    ]
