"""Drawings in HTML pages: lines and bars over two axes, as SVG, in whichever colours the page has."""

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FOOT = 640, 240, 56, 12, 12, 34
TICKS = 4
SERIES = 6  # of colours, in the page's own style: var(--s0), var(--s1), ...

Points = Sequence[tuple[float, float]]


def lines(name: str, across: str, up: str, given: Mapping[str, Points]) -> str:
    """Lines by their names, with a legend; nothing where there is no point. Both axes begin at 0."""
    drawn = {one: points for one, points in given.items() if points}
    if not drawn:
        return ""
    frame = _Frame(
        max(x for points in drawn.values() for x, _ in points), max(y for points in drawn.values() for _, y in points)
    )
    body = frame.axes(across, up)
    for number, (one, points) in enumerate(drawn.items()):
        colour = f"var(--s{number % SERIES})"
        path = "L".join(frame.at(x, y) for x, y in points)
        body.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"/>')
        for x, y in points:
            across_px, up_px = frame.at(x, y).split()
            told = escape(f"{one}: {y:.4g} at {x:g}")
            body.append(f'<circle cx="{across_px}" cy="{up_px}" r="2.4" fill="{colour}"><title>{told}</title></circle>')
    return _figure(name, body, list(drawn))


def bars(name: str, across: str, up: str, given: Sequence[tuple[str, float]]) -> str:
    """A bar for each of what is given, in its order."""
    if not any(value for _, value in given):
        return ""
    frame = _Frame(len(given), max(value for _, value in given))
    body = frame.axes(across, up, numbers=False)
    for number, (label, value) in enumerate(given):
        left, top = map(float, frame.at(number + 0.15, value).split())
        right, bottom = map(float, frame.at(number + 0.85, 0).split())
        told = escape(f"{label}: {value:g}")
        body.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" '
            f'fill="var(--s0)"><title>{told}</title></rect>'
        )
        body.append(
            f'<text x="{(left + right) / 2:.1f}" y="{bottom + 13:.1f}" text-anchor="middle">{escape(label)}</text>'
        )
    return _figure(name, body, [])


class _Frame:
    """Where values are drawn."""

    def __init__(self, most_x: float, most_y: float) -> None:
        self.step_x, self.step_y = _step(most_x), _step(most_y)
        self.most_x = most_x or 1.0
        self.most_y = self.step_y * (floor(most_y / self.step_y) + 1)

    def at(self, x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / self.most_x
        return f"{across:.1f} {TOP + (HEIGHT - TOP - FOOT) * (1 - y / self.most_y):.1f}"

    def axes(self, across: str, up: str, numbers: bool = True) -> list[str]:
        drawn = [f'<text x="{LEFT}" y="{TOP - 2}" class="u">{escape(up)}</text>']
        for number in range(round(self.most_y / self.step_y) + 1):
            x, y = self.at(0, number * self.step_y).split()
            drawn.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" class="g"/>')
            drawn.append(
                f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{number * self.step_y:g}</text>'
            )
        for number in range(int(self.most_x / self.step_x) + 1) if numbers else ():
            x, y = self.at(number * self.step_x, 0).split()
            drawn.append(f'<text x="{x}" y="{float(y) + 13:.1f}" text-anchor="middle">{number * self.step_x:g}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        drawn.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle" class="u">{escape(across)}</text>')
        return drawn


def _figure(name: str, body: Sequence[str], legend: Sequence[str]) -> str:
    keys = "".join(
        f'<span><i style="background:var(--s{number % SERIES})"></i>{escape(one)}</span>'
        for number, one in enumerate(legend)
    )
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{"".join(body)}</svg>'
    return f"<figure><figcaption>{escape(name)}<b>{keys}</b></figcaption>{svg}</figure>"


def _step(most: float) -> float:
    """A round number of which a few fit below the most."""
    rough = (most or 1.0) / TICKS
    whole: float = 10.0 ** floor(log10(rough))
    return next(times * whole for times in (1, 2, 5, 10) if times * whole >= rough)
