"""Lines over one axis, as SVG documents: for evidence that is easier seen than read."""

from collections.abc import Mapping, Sequence
from math import floor, log10
from xml.sax.saxutils import escape

from gateway.spend_plot import COLOURS, SVG_HEIGHT, SVG_LEFT, SVG_WIDTH

TOP, RIGHT, FOOT = 30, 20, 70
TICKS = 5  # on the upright axis, about
LEGEND_WIDTH = 220
STYLE = """<style>
text { fill: #1f2328 } .grid { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) { text { fill: #f0f6fc } .grid { stroke: #3d444d } }
</style>"""

Points = Sequence[tuple[float, float]]


def svg(title: str, across: str, lines: Mapping[str, Points]) -> str:
    """Draw lines by their names; both axes begin at 0. Readable on light and on dark."""
    width, height = SVG_WIDTH - SVG_LEFT - RIGHT, SVG_HEIGHT - TOP - FOOT
    most_x = max(x for points in lines.values() for x, _ in points)
    step = _step(max(y for points in lines.values() for _, y in points) or 1.0)
    most_y = step * (floor(max(y for points in lines.values() for _, y in points) / step) + 1)

    def at(x: float, y: float) -> str:
        return f"{SVG_LEFT + width * x / most_x:.1f} {TOP + height * (1 - y / most_y):.1f}"

    drawn = [f'<text x="{SVG_LEFT}" y="18" font-size="13">{escape(title)}</text>']
    for number in range(round(most_y / step) + 1):
        x, y = at(0, number * step).split()
        drawn.append(f'<path d="M{x} {y}h{width}" class="grid"/>')
        drawn.append(f'<text x="{SVG_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{number * step:g}</text>')
    for x_value in sorted({x for points in lines.values() for x, _ in points}):
        x, y = at(x_value, 0).split()
        drawn.append(f'<text x="{x}" y="{float(y) + 16:.1f}" text-anchor="middle">{x_value:g}</text>')
    middle = SVG_LEFT + width / 2
    drawn.append(f'<text x="{middle}" y="{SVG_HEIGHT - FOOT + 34}" text-anchor="middle">{escape(across)}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = "L".join(at(x, y) for x, y in points)
        drawn.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x_value, y_value in points:
            x, y = at(x_value, y_value).split()
            told = escape(f"{name}: {y_value:g} at {x_value:g}")
            drawn.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"><title>{told}</title></circle>')
        left = SVG_LEFT + number * LEGEND_WIDTH
        drawn.append(f'<rect x="{left}" y="{SVG_HEIGHT - 22}" width="10" height="10" fill="{colour}"/>')
        drawn.append(f'<text x="{left + 14}" y="{SVG_HEIGHT - 13}">{escape(name)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDTH} {SVG_HEIGHT}" font-family="sans-serif"'
    return "\n".join([f'{head} font-size="11">', STYLE, *drawn, "</svg>", ""])


def _step(most: float) -> float:
    """A round number of which a few fit below the most."""
    rough = most / TICKS
    whole: float = 10.0 ** floor(log10(rough))
    return next(times * whole for times in (1, 2, 5, 10) if times * whole >= rough)
