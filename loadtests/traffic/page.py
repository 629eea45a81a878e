"""A report as one HTML file: no script, nothing from elsewhere, readable in light and in dark."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from loadtests.traffic import chart

ROWS = ("TTFT", "ITL", "TPOT", "E2E", "longest gap")
COLUMNS = ("p50", "p90", "p99", "p99.9")
SHARES_MAX = 6  # budgets in one drawing
STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#5b6570;--line:#d8dee4;--card:#f6f8fa;--bad:#b3261e;
--good:#1a7f37;
--s0:#4477aa;--s1:#cc6677;--s2:#228833;--s3:#b8860b;--s4:#3399bb;--s5:#aa3377}
@media(prefers-color-scheme:dark){:root{--bg:#14181d;--fg:#e6e8eb;--dim:#9aa4af;--line:#30363d;--card:#1c2128;
--bad:#ff8a80;--good:#5dd27a;
--s0:#77aadd;--s1:#ee8899;--s2:#66cc77;--s3:#ddbb55;--s4:#77ccee;--s5:#dd88bb}}
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:1320px;margin:0 auto;
padding:24px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:17px;margin:28px 0 8px}p.dim,td.dim,.dim{color:var(--dim)}
.bad{color:var(--bad);font-weight:600}.good{color:var(--good);font-weight:600}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin:16px 0}.cards div{background:var(--card);
border:1px solid var(--line);border-radius:8px;
padding:8px 14px;min-width:130px}.cards b{display:block;font-size:20px;font-variant-numeric:tabular-nums}
.cards span{color:var(--dim);font-size:13px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:16px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px}
figcaption{font-size:13px;display:flex;justify-content:space-between;flex-wrap:wrap}figcaption b{font-weight:400;
color:var(--dim)}
figcaption span{margin-left:12px}figcaption i{display:inline-block;width:10px;height:10px;border-radius:2px;
margin-right:4px}
svg{width:100%;height:auto;font:11px system-ui,sans-serif;fill:var(--fg)}svg .g{stroke:var(--line);fill:none}
svg .u{fill:var(--dim)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{border-bottom:1px solid var(--line);padding:4px 14px 4px 0;text-align:right;vertical-align:top}
td:first-child,th:first-child,td.l,th.l{text-align:left}th{color:var(--dim);font-weight:500}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px;overflow-x:auto;font-size:12px}
"""


def html(found: dict[str, Any]) -> str:
    """The whole page."""
    head = found["head"]
    title = f"{', '.join(head['scenarios'])} at {head['host']}"
    when = datetime.fromtimestamp(head["began_unix"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    sla = ", ".join(f"{name} ≤ {value:g} s" for name, value in head["sla"].items() if value is not None)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{when} · {found["took_s"]:.1f} s · seed {head["options"]["seed"]} · good: {escape(sla)}</p>',
        *_verdicts(found), _cards(found), f'<div class="figures">{"".join(_figures(found))}</div>',
        "<h2>Latency of whole answers, in milliseconds</h2>", _latency(found), *_paired(found), *_steps(found),
        *_errors(found), *_tenants(found), *_generator(found),
        "<h2>Asked for</h2>", f"<pre>{escape(json.dumps(head, indent=1))}</pre>",
    ]  # fmt: skip
    begin = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    begin += '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
    begin += f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
    return begin + "\n".join(part for part in parts if part) + "\n</body></html>\n"


def ms(seconds: float | None) -> str:
    """A duration for a table; a dash where too few requests tell it."""
    if seconds is None:
        return "–"
    return (
        f"{seconds * 1e3:.2f}"
        if abs(seconds) < 0.01
        else f"{seconds * 1e3:.1f}"
        if abs(seconds) < 1
        else f"{seconds * 1e3:.0f}"
    )


def table(rows: Sequence[Sequence[Any]], left: Sequence[int] = ()) -> str:
    """A table; the first row is its head. left: columns of words."""

    def cell(tag: str, number: int, value: Any) -> str:
        return f"<{tag}{' class=l' if number in left else ''}>{escape(str(value))}</{tag}>"

    lines = [
        "<tr>" + "".join(cell("td" if place else "th", number, value) for number, value in enumerate(row)) + "</tr>"
        for place, row in enumerate(rows)
    ]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _verdicts(found: dict[str, Any]) -> list[str]:
    limited = found["generator"]["limited"]
    said = [f'<p class="bad">The generator limited this run: {escape(one)}.</p>' for one in limited]
    requests, whole, still = found["rates"]["requests"], found["rates"]["whole"], found["stages"].get("unfinished", 0)
    if found["failed"]:
        said.append(f'<p class="bad">{found["failed"]} of {requests} requests failed.</p>')
    elif whole:
        which = "Every stream that ended" if still else "Every stream"
        said.append(f'<p class="good">{which} was whole: finish reason, [DONE], and usage that says what came.</p>')
    elif requests > still:
        said.append('<p class="good">No stream was to be whole: all were left or stopped, as they were to be.</p>')
    else:
        said.append(f'<p class="bad">None of {requests} requests was answered.</p>')
    if still:
        said.append(f'<p class="bad">{still} of {requests} were open when the run ended: nobody knows of them.</p>')
    if (share := found["tokens"]["counted_share"]) is not None and share < 1:
        said.append(
            f'<p class="dim">Tokens were counted by their ids in {share:.0%} of answers; else usage is believed.</p>'
        )
    if found["lost"]:
        said.append(f'<p class="bad">{found["lost"]} records were not kept: there were too many.</p>')
    return said


def _cards(found: dict[str, Any]) -> str:
    rates, tokens = found["rates"], found["tokens"]
    offered = rates["clients_offered_per_s"]
    cards = [
        *(
            [
                ("clients offered, per s", f"{offered:.2f}"),
                ("clients let in, per s", f"{rates['clients_begun_per_s']:.2f}"),
            ]
            if offered
            else []
        ),
        ("requests, per s", f"{rates['requests_per_s']:.2f}"),
        ("whole, per s", f"{rates['whole_per_s']:.2f}"),
        ("good, per s", f"{rates['goodput_per_s']:.2f}"),
        ("good", "–" if rates["good_share"] is None else f"{rates['good_share']:.1%}"),
        ("tokens out, per s", f"{tokens['completion_per_s']:.0f}"),
        ("tokens in, per s", f"{tokens['prompt_per_s']:.0f}"),
        ("of them cached", f"{tokens['cached'] / tokens['prompt']:.0%}" if tokens["prompt"] else "–"),
    ]
    return (
        '<div class="cards">'
        + "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in cards)
        + "</div>"
    )


def _figures(found: dict[str, Any]) -> Iterable[str]:
    bins, gateway = found["over_time"]["bins"], found["gateway"]
    for row in ("TTFT", "ITL", "E2E"):
        drawn = {
            name: [(one["at_s"], one[row][name] * 1e3) for one in bins if one[row][name] is not None]
            for name in COLUMNS[:3]
        }
        yield chart.lines(f"{row}, by when it was asked", "seconds", "ms", drawn)
    size = found["over_time"]["bin_s"]
    yield chart.lines(
        "Requests",
        "seconds",
        "per s",
        {
            "sent": [(one["at_s"], one["requests"] / size) for one in bins],
            "good": [(one["at_s"], one["good"] / size) for one in bins],
            "failed": [(one["at_s"], one["errors"] / size) for one in bins]
            if any(one["errors"] for one in bins)
            else [],
        },
    )
    steps = [one for one in found["steps"] if one["rate_per_s"] is not None]
    if len(steps) > 1:
        yield chart.lines("Goodput against offered load", "clients offered, per s", "requests per s", {
            "sent": [(one["rate_per_s"], one["requests_per_s"]) for one in steps],
            "whole": [(one["rate_per_s"], one["whole_per_s"]) for one in steps],
            "good": [(one["rate_per_s"], one["goodput_per_s"]) for one in steps],
        })  # fmt: skip
    yield chart.lines(
        "The longest gap in a stream",
        "seconds",
        "ms",
        {"longest": [(one["at_s"], one["gap_max_s"] * 1e3) for one in bins]},
    )
    gaps = gateway.get("failover_gap", [])
    yield chart.bars(f"Failovers: {gateway.get('failovers', 0):.0f}, by their gap", "up to, seconds", "streams", [
        (f"{one['upto_s']:g}" if one["upto_s"] is not None else "more", one["count"]) for one in gaps
    ])  # fmt: skip
    rss = gateway.get("rss_bytes", [])
    yield chart.lines(
        "Memory of the gateway (RSS)", "seconds", "MB", {"RSS": [(at_s, value / 1e6) for at_s, value in rss]}
    )
    budgets = _spent(gateway.get("budgets", {}))
    yield chart.lines("Budgets: spent of them", "seconds", "%", budgets)
    yield chart.lines("Tokens of tenants, prompts and answers, so far", "seconds", "thousand", _sums(bins))


def _spent(budgets: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, list[tuple[float, float]]]:
    """The most spent ones."""
    shares = {
        name: [(at_s, 100 * spent / amount) for at_s, spent, amount in points if amount]
        for name, points in budgets.items()
    }
    ranked = sorted((name for name in shares if shares[name]), key=lambda name: -shares[name][-1][1])
    return {name: shares[name] for name in ranked[:SHARES_MAX]}


def _sums(bins: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    names = sorted({name for one in bins for name in one["tenants"]})[:SHARES_MAX]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    so_far = dict.fromkeys(names, 0)
    for one in bins:
        for name in names:
            so_far[name] += one["tenants"].get(name, 0)
            found[name].append((one["at_s"], so_far[name] / 1e3))
    return found


def _latency(found: dict[str, Any]) -> str:
    rows: list[list[Any]] = [["", "count", *COLUMNS]]
    scenarios = found["by_scenario"]
    for name, told in (
        ("all", found["latency"]),
        *((name, one["latency"]) for name, one in scenarios.items() if len(scenarios) > 1),
    ):
        rows += [
            [f"{row}, {name}", f"{told[row]['count']:.0f}", *(ms(told[row][one]) for one in COLUMNS)] for row in ROWS
        ]
    return table(rows)


def _paired(found: dict[str, Any]) -> list[str]:
    if not found["paired"]:
        return []
    rows: list[list[Any]] = [["", "pairs", "not whole at both", "median, ms", "95 % within"]]
    for name, one in found["paired"].items():
        rows.append([name, one["values"], one["broken"], ms(one["median"]), f"{ms(one['low'])} … {ms(one['high'])}"])
    return [
        "<h2>What the gateway adds</h2>",
        '<p class="dim">The same request, asked at the gateway and at the server itself, one after the other, in an '
        "order of chance: differences within pairs. E2E only where both answers have as many tokens.</p>",
        table(rows),
    ]


def _steps(found: dict[str, Any]) -> list[str]:
    steps = [one for one in found["steps"] if one["rate_per_s"] is not None]
    if not steps:
        return []
    rows: list[list[Any]] = [
        [
            "clients offered, per s",
            "came, per s",
            "let in, per s",
            "requests, per s",
            "whole, per s",
            "good, per s",
            "good",
            "failed",
            "TTFT p50",
            "TTFT p99",
            "ITL p50",
            "ITL p99",
        ]
    ]
    for one in steps:
        told = one["latency"]
        rows.append(
            [
                f"{one['rate_per_s']:g}",
                f"{one['clients_offered_per_s'] or 0:.2f}",
                f"{one['clients_begun_per_s'] or 0:.2f}",
                f"{one['requests_per_s']:.2f}",
                f"{one['whole_per_s']:.2f}",
                f"{one['goodput_per_s']:.2f}",
                "–" if one["good_share"] is None else f"{one['good_share']:.1%}",
                one["errors"],
                *(ms(told[row][name]) for row in ("TTFT", "ITL") for name in ("p50", "p99")),
            ]
        )
    return ["<h2>Offered and achieved</h2>", table(rows)]


def _errors(found: dict[str, Any]) -> list[str]:
    rows: list[list[Any]] = [["how far it came", "scenario", *found["stages"]]]
    for name, one in found["by_scenario"].items():
        rows.append(["requests", name, *(one["stages"].get(stage, 0) for stage in found["stages"])])
    parts = ["<h2>What became of requests</h2>", table(rows, left=(1,))]
    if found["errors"]:
        lines: list[list[Any]] = [["stage", "status", "code", "count", "scenarios", "the first one's words"]]
        lines += [
            [
                one["stage"],
                one["status"] or "–",
                one["code"] or "–",
                one["count"],
                ", ".join(one["scenarios"]),
                one["said"],
            ]
            for one in found["errors"]
        ]
        parts.append(table(lines, left=(2, 4, 5)))
    if refusals := found["gateway"].get("refusals"):
        said = ", ".join(f"{name} {value:.0f}" for name, value in sorted(refusals.items(), key=lambda item: -item[1]))
        parts.append(f'<p class="dim">Refused by the gateway, by its own count: {escape(said)}.</p>')
    return parts


def _tenants(found: dict[str, Any]) -> list[str]:
    if not found["tenants"]:
        return []
    rows: list[list[Any]] = [["tenant", "requests", "whole", "tokens", "TTFT p50, ms", "TTFT p99, ms"]]
    for name, one in found["tenants"].items():
        told = one["TTFT"]
        rows.append(
            [name, one["requests"], one["stages"].get("whole", 0), one["tokens"], ms(told["p50"]), ms(told["p99"])]
        )
    return ["<h2>Tenants</h2>", table(rows)]


def _generator(found: dict[str, Any]) -> list[str]:
    one = found["generator"]
    rows: list[list[Any]] = [
        ["", ""],
        ["processes", one["processes"]],
        ["of a core each, on average", f"{one['cpu_mean']:.0%}"],
        ["of a core, at most", f"{one['cpu_max']:.0%}"],
        ["clients came late by, p50, ms", ms(one["lag_p50_s"])],
        ["clients came late by, p99, ms", ms(one["lag_p99_s"])],
        ["woke up late by, p99", f"{ms(one['late_p99_s'])} ms"],
        ["clients that were not let in", one["not_begun"]],
    ]
    said = "It set the limit, see above." if one["limited"] else "It kept up."
    return ["<h2>The generator itself</h2>", f'<p class="dim">{said}</p>', table(rows)]
