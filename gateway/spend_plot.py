"""What was spent over time: a bar for each hour or day, of whom it was; in a terminal, or as an SVG file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO
from xml.sax.saxutils import escape

from gateway.spend import Spent
from guards.money import shown

STEPS_S = (60, 300, 900, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400)
BARS_MAX = 48
NAMES_MAX = 6  # beyond, the rest is one
REST = "others"
WIDTH = 100  # where the output is no terminal
MARKS = "█▓▒░▚▞▖"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999")  # Paul Tol's, for all eyes
SVG_WIDTH, SVG_HEIGHT, SVG_LEFT, SVG_FOOT = 960, 320, 80, 60


def step_for(span_s: float) -> int:
    """How long a bar lasts, so that a span has BARS_MAX of them at most, in seconds; of those that clocks have."""
    return next((step for step in STEPS_S if span_s <= step * BARS_MAX), STEPS_S[-1])


@dataclass(frozen=True, slots=True)
class Plot:
    """Bars to be drawn. names: whose parts they have, the biggest first; in micro-dollars, or in tokens where all is
    free. bars: the parts of each, in the order of the names, by when it begins (unix seconds)."""

    names: Sequence[str]
    bars: Mapping[int, Sequence[int]]
    money: bool
    step_s: int

    @property
    def most(self) -> int:
        """What the longest bar stands for."""
        return max((sum(parts) for parts in self.bars.values()), default=0)

    def worded(self, amount: int) -> str:
        """An amount, for people."""
        return shown(amount) if self.money else f"{amount:,}"

    def when(self, at: int) -> str:
        """A bar's beginning (UTC), for people."""
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d" if self.step_s >= 86_400 else "%m-%d %H:%M")


def plot(times: Mapping[int, Sequence[Spent]], step_s: int) -> Plot:
    """Say which bars there are; hours in which nothing was spent have one too."""
    money = any(one.cost for rows in times.values() for one in rows)
    total: Counter[str] = Counter()
    for rows in times.values():
        for one in rows:
            total[one.name] += one.cost if money else one.tokens
    names = [name for name, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))]
    names = names if len(names) <= NAMES_MAX + 1 else [*names[:NAMES_MAX], REST]
    place = {name: number for number, name in enumerate(names)}
    bars = {at: [0] * len(names) for at in range(min(times), max(times) + 1, step_s)} if times else {}
    for at, rows in times.items():
        for one in rows:
            bars[at][place.get(one.name, len(names) - 1)] += one.cost if money else one.tokens
    return Plot(names, bars, money, step_s)


def show(found: Plot, out: TextIO) -> None:
    """Draw it in a terminal. Names are text, never markup."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=out, width=None if out.isatty() else WIDTH)
    amounts = {at: found.worded(sum(parts)) for at, parts in found.bars.items()}
    room = max(8, console.width - 16 - max(map(len, amounts.values()), default=0))
    for at, parts in found.bars.items():
        bar = Text(f"{found.when(at):>11}  ")
        drawn = so_far = 0
        for number, part in enumerate(parts):
            so_far += part
            upto = max(round(room * so_far / (found.most or 1)), 1 if so_far else 0)
            bar.append(MARKS[number] * (upto - drawn), COLOURS[number])
            drawn = upto
        bar.append(f" {amounts[at]}" if sum(parts) else "")
        console.print(bar)
    legend = Text(" " * 13)
    for number, name in enumerate(found.names):
        legend.append(MARKS[number], COLOURS[number]).append(f" {name}   ")
    console.print(legend)


def svg(found: Plot, by: str) -> str:
    """Draw it as an SVG document."""
    width = (SVG_WIDTH - SVG_LEFT) / max(1, len(found.bars))
    scale = (SVG_HEIGHT - SVG_FOOT - 20) / (found.most or 1)
    floor = SVG_HEIGHT - SVG_FOOT
    drawn = [
        f'<text x="{SVG_LEFT - 6}" y="24" text-anchor="end">{found.worded(found.most)}</text>',
        f'<path d="M{SVG_LEFT} 20V{floor}H{SVG_WIDTH}" fill="none" stroke="#888"/>',
    ]
    for place, (at, parts) in enumerate(found.bars.items()):
        x, y = SVG_LEFT + place * width, float(floor)
        for name, part, colour in zip(found.names, parts, COLOURS, strict=False):
            y -= part * scale
            if part:
                title = escape(f"{found.when(at)} {name}: {found.worded(part)}")
                box = f'x="{x + 1:.1f}" y="{y:.1f}" width="{max(1.0, width - 2):.1f}" height="{part * scale:.1f}"'
                drawn.append(f'<rect {box} fill="{colour}"><title>{title}</title></rect>')
        if place % max(1, len(found.bars) // 8) == 0:
            drawn.append(f'<text x="{x:.1f}" y="{floor + 16}">{found.when(at)}</text>')
    for place, (name, colour) in enumerate(zip(found.names, COLOURS, strict=False)):
        x = SVG_LEFT + place * (SVG_WIDTH - SVG_LEFT) / (NAMES_MAX + 1)
        drawn.append(f'<rect x="{x:.1f}" y="{floor + 30}" width="10" height="10" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 14:.1f}" y="{floor + 39}">{escape(name[:18])}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDTH} {SVG_HEIGHT}" font-family="sans-serif"'
    return "\n".join([f'{head} font-size="11">', f"<title>Spend by {escape(by)}</title>", *drawn, "</svg>", ""])
