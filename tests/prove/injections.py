"""A thousand damaged KV pages in a real vLLM, by seed: who found them, and what those were answered who read them."""

from collections.abc import Iterable
from typing import Any

from tests.prove.state import keep, provenance, results, say
from tests.prove.vllm_plugin import measured

NAME = "injections"
COUNT = 1000
EACH_S_MAX, START_S_MAX = 2.0, 180.0
# Of COUNT: all of it where each must be found, and some more with less scrubbing, to be told what that misses.
SHARES = {"recompute": 0.8, "abort": 0.2, "default": 0.15, "scarce": 0.15}
CONTROL = "control"
GATED = ("between two requests", "stored")  # places where damage waits for whoever hits it, however little is scrubbed
WORDS = {
    "recompute": '`"scrub":"all"`',
    "abort": '`"scrub":"all","on_corruption":"abort"`',
    "default": "the default",
    "scarce": '`"scrub":0.0001`: one page a step',
    CONTROL: "vLLM without the plugin",
}


def run(count: int = COUNT) -> None:
    """All settings, one after the other; the control with the first one's seeds."""
    if results().get(NAME, {"count": 0})["count"] >= count:
        return
    first, done = 0, {}
    for setting, share in SHARES.items():
        done[setting] = _measured(setting, first, round(count * share))
        first += round(count * share)
    done[CONTROL] = _measured(CONTROL, 0, round(count * SHARES["recompute"]))
    answers = [one.pop("answers") for one in done.values()]
    same = all(one == answers[0] for one in answers)
    keep(NAME, {"on": provenance(), "count": count, "answers": len(answers[0]), "same_answers": same, "settings": {
        setting: one["injections"] for setting, one in done.items()
    }})  # fmt: skip


def _measured(setting: str, first: int, count: int) -> dict[str, Any]:
    say(f"{NAME}: {count} under {setting}")
    said = ["--setting", setting, "--first", str(first), "--count", str(count)]
    return measured("injections", *said, limit_s=START_S_MAX + EACH_S_MAX * count)


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    if NAME not in done:
        return {}
    settings = done[NAME]["settings"]
    with_it = [one for setting in SHARES for one in settings[setting]]
    strict = [one for setting in ("recompute", "abort") for one in settings[setting]]
    read = [one for one in strict if one["changed"] and one["read"]]
    kinds, places = ({one[what] for one in strict} for what in ("kind", "place"))
    gated = [one for setting in ("default", "scarce") for one in settings[setting] if one["place"] in GATED]
    found = [one for one in (*strict, *gated) if one["changed"] and one["read"]]
    without = settings[CONTROL]
    off, answers = _sum(without, "moved"), _sum(without, "equal", "wrong")
    return {
        f'{len(strict):,} injections with `"scrub":"all"`, by seed, of {len(kinds)} kinds in {len(places)} places; '
        f"{len(read)} changed a page that was then read": len(strict) >= COUNT,
        'with `"scrub":"all"` each of those is counted, and with less scrubbing each between requests or in the store':
            all(one["counted"] for one in found),
        "with `recompute`, every answer is that of the unharmed run: tokens, and their probabilities": not _sum(
            settings["recompute"], "wrong", "moved", "errors"
        ),
        "with `abort`, every answer is that, or ends with an error, and no token that was given out is wrong": not _sum(
            strict, "wrong", "moved", "early"
        ),
        "with less scrubbing too, where the page was between requests or in the store": not _sum(
            gated, "wrong", "moved", "errors"
        ),
        "whoever asks after that is answered rightly": not _sum(with_it, "again_wrong"),
        "nothing else is counted: no page that was not damaged, no broken chain": not any(
            one["broken"] or one["counted"] > one["harmed"] or (one["counted"] and not one["changed"])
            for one in with_it
        ),
        f"the plugin's unharmed answers are those of vLLM without it ({done[NAME]['answers']} prompts)": done[NAME][
            "same_answers"
        ],
        f"without the plugin, {off} of {answers} answers to the same are off, {_sum(without, 'wrong')} of them in "
        "their tokens": off > 0,
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    if NAME not in done:
        return []
    settings = done[NAME]["settings"]
    with_it = [one for setting in SHARES for one in settings[setting]]
    pairs = sorted({(one["place"], one["kind"]) for one in with_it})
    return [
        "## Damaged pages",
        "",
        f"{done[NAME]['on']}. One engine for each setting, a tiny model in float32, pages of 32 tokens, a store in "
        "shared memory. «Read»: somebody was to read the page, by its place. «Off»: a probability is not what it was "
        "in the unharmed run, though every token may be. «Before the end»: wrong tokens that were given out before "
        "their request ended with an error.",
        "",
        *_head("setting"),
        *(_row(WORDS[setting], many) for setting, many in settings.items()),
        "",
        "All settings of the plugin together:",
        "",
        *_head("place | kind"),
        *(_row(f"{place} | {kind}", [one for one in with_it if (one["place"], one["kind"]) == (place, kind)])
          for place, kind in pairs),
        "",
    ]  # fmt: skip


def _head(what: str) -> list[str]:
    columns = "injected | read | counted | missed | answers equal | clean errors | wrong | off | before the end"
    return [f"| {what} | {columns} |", "|" + " --- |" * (f"{what} | {columns}".count("|") + 1)]


def _row(what: str, many: list[dict[str, Any]]) -> str:
    changed = [one for one in many if one["changed"]]
    read = [one for one in changed if one["read"]]
    counted = [one for one in read if one["counted"]]
    numbers = [
        len(changed), len(read), len(counted), len(read) - len(counted),
        *(_sum(many, name) for name in ("equal", "errors", "wrong", "moved", "early")),
    ]  # fmt: skip
    return f"| {what} | {' | '.join(map(str, numbers))} |"


def _sum(many: Iterable[dict[str, Any]], *names: str) -> int:
    return sum(int(one[name]) for one in many for name in names)
