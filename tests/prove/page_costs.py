"""What the plugin costs: engines with it and one without, which take turns at the same work, round by round."""

import statistics
from collections.abc import Callable
from typing import Any

from tests.prove.plots import svg
from tests.prove.report import EVIDENCE
from tests.prove.state import SEED, keep, provenance, results, say
from tests.prove.vllm_plugin import workers

NAME = "page-costs"
WITHOUT, AGAIN = "without", "without, again"  # two alike: what they differ by is what can be told here
SETTINGS: dict[str, str] = {
    WITHOUT: "", "always": "{}", "sampled": '{"verify":"sampled:0.1"}', "scrub all": '{"scrub":"all"}', AGAIN: "",
}  # fmt: skip
SITTINGS = 2  # with engines of their own: where memory comes to lie makes a difference as long as a process lives
# A size of model: requests, tokens of each answer, how many at once, rounds of a sitting, and how long one may take.
SIZES = {"tiny": (120, 32, 24, 6, 120.0), "hundred-million": (32, 24, 16, 4, 300.0)}
JUDGED = "hundred-million"  # a step of the tiny one is shorter than any that is served
GOALS = {"always": 0.02, "sampled": 0.01}

Round = dict[str, dict[str, float]]


def run() -> None:
    """Each size of model: in each sitting a round to warm up, and then those that count, each in another order."""
    if NAME in results():
        return
    done = {size: [one for sitting in range(SITTINGS) for one in _sitting(size, sitting)] for size in SIZES}
    keep(NAME, {"on": provenance(), "sizes": done})


def _sitting(size: str, sitting: int) -> list[Round]:
    requests, tokens, at_once, rounds, limit_s = SIZES[size]
    more = ["--size", size, "--at-once", str(at_once)]
    told = {name: ([*more, "--plugin", said] if said else more) for name, said in SETTINGS.items()}
    done: list[Round] = []
    with workers("costs", told) as engines:
        for number in range(rounds + 1):
            order = sorted(engines, key=lambda name: (list(SETTINGS).index(name) + number) % len(SETTINGS))
            order = order[::-1] if number % 2 else order
            seed = SEED + 100 * sitting + number
            done.append({
                name: engines[name].ask(limit_s, seed=seed, requests=requests, tokens=tokens) for name in order
            })  # fmt: skip
            costs = ", ".join(f"{name} {_cost(done[-1], name):+.1%}" for name in SETTINGS if name != WITHOUT)
            say(f"{NAME}: {size}, sitting {sitting + 1}, {number} of {rounds}: {costs}")
    return done[1:]


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    if NAME not in done:
        return {}
    rounds = done[NAME]["sizes"][JUDGED]
    found = {}
    blur = abs(statistics.median(_cost(one, AGAIN) for one in rounds))
    for name, goal in GOALS.items():
        cost = statistics.median(_cost(one, name) for one in rounds)
        hooks = statistics.median(one[name]["hooks_s"] / one[name]["cpu_s"] for one in rounds)
        found[
            f"`{name}` spends {hooks:.1%} of the processor in the plugin, and {cost:+.1%} in all, where the same again "
            f"differs by {blur:.1%}; at saturation, a {JUDGED} model; goal: below {goal:.0%}"
        ] = hooks < goal and cost < goal + blur
    return found


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words and as a plot."""
    if NAME not in done:
        return []
    found = [
        "## Costs",
        "",
        f"{done[NAME]['on']}. Engines in processes of their own take turns at the same requests, in another order each "
        "round, as many at once as they may run; prompts of 360 tokens, 320 of which they share with others. Each "
        "figure is against vLLM without the plugin in the same round: median (lowest to highest). Processor time "
        "is the engine's, its scheduler's and its sampler's together, and what the machine did besides is not in it. "
        "«Hooks» is the part of it that is spent in the plugin; «digests» that in tile sums, as the plugin counts it. "
        "«Without, again» is vLLM without the plugin once more: what it differs by is how much can be told here.",
        "",
    ]
    for size, rounds in done[NAME]["sizes"].items():
        requests, tokens, at_once, *_ = SIZES[size]
        step_ms = statistics.median(1e3 * one[WITHOUT]["cpu_s"] / one[WITHOUT]["steps"] for one in rounds)
        found += [
            f"### {size}: {len(rounds)} rounds of {requests} requests, {tokens} tokens each, {at_once} at once; a step "
            f"without the plugin takes {step_ms:.1f} ms",
            "",
            "| | processor time | throughput | first token | hooks | digests |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_row(name, rounds) for name in SETTINGS if name != WITHOUT),
            "",
        ]
    rounds = done[NAME]["sizes"][JUDGED]
    plotted = {
        name: [(float(number), 100 * (1 + _cost(one, name))) for number, one in enumerate(rounds, 1)]
        for name in SETTINGS
    }
    title = f"Time of the processor, % of vLLM without the plugin, {JUDGED} model"
    (EVIDENCE / "pages.svg").write_text(svg(title, "round", plotted))
    return [*found, "![Costs by round](pages.svg)", ""]


def _row(name: str, rounds: list[Round]) -> str:
    def of(figure: Callable[[Round], float]) -> str:
        values = sorted(figure(one) for one in rounds)
        return f"{statistics.median(values):+.1%} ({values[0]:+.1%} to {values[-1]:+.1%})"

    shares = (statistics.median(one[name][part] / one[name]["cpu_s"] for one in rounds)
              for part in ("hooks_s", "digest_s"))  # fmt: skip
    return " | ".join([
        f"| {name}", of(lambda one: _cost(one, name)), of(lambda one: one[WITHOUT]["wall_s"] / one[name]["wall_s"] - 1),
        of(lambda one: one[name]["ttft_s"] / one[WITHOUT]["ttft_s"] - 1), *(f"{share:.1%}" for share in shares),
    ]) + " |"  # fmt: skip


def _cost(one: Round, name: str) -> float:
    """More time of the processor than without the plugin, as a share of that."""
    return one[name]["cpu_s"] / one[WITHOUT]["cpu_s"] - 1
