"""One failover as a picture: who did what, and when, from timestamps of a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, LANE = 960, 110, 30, 56, 62
TICKS_MAX = 12
AROUND_S = 0.1  # shown before the last token and after the first new one
STYLE = """<style>
text { fill: #1f2328 } .faint { fill: #59636e } .line { stroke: #59636e } .grid { stroke: #d1d9e0 }
.serve { fill: #4477aa } .dead { stroke: #cc3311 } .deadly { fill: #cc3311 }
.see { fill: #ccbb44 } .ask { fill: #aa3377 } .load { fill: #228833 } .way { fill: #b0b0b0 } .compute { fill: #66ccee }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .faint { fill: #9198a1 } .line { stroke: #9198a1 } .grid { stroke: #3d444d }
.serve { fill: #77aadd } .dead { stroke: #ff7055 } .deadly { fill: #ff7055 }
}
</style>"""


@dataclass(frozen=True)
class Failover:
    """Of one stream; in seconds against the kill. tokens: when its client got some. load, compute: how long."""

    tokens: Sequence[float]
    lost: float
    asked: float
    first: float
    load: float
    compute: float

    @property
    def last(self) -> float:
        """When the client had its last token of the server that was killed."""
        return max(at for at in self.tokens if at < self.first)

    @property
    def steps(self) -> Mapping[str, float]:
        """What the pause is made of, in the order of time."""
        way = self.first - self.asked - self.load - self.compute
        return {
            "before the kill, or on the way from it": -self.last,
            "the loss is seen": self.lost,
            "the standby is asked": self.asked - self.lost,
            "the request, and the first token, on their ways": way,
            "pages are loaded": self.load,
            "the rest is computed": self.compute,
        }


def svg(one: Failover, title: str) -> str:
    """Draw it: the client's tokens, the server that died, the gateway, the standby. Readable on light and on dark."""
    begin, end = one.last - AROUND_S, one.first + AROUND_S
    height = TOP + 4 * LANE + 40

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (at - begin) / (end - begin)

    def bar(lane: int, since: float, until: float, kind: str, said: str) -> str:
        wide = max(1.5, x(until) - x(since))
        y = TOP + lane * LANE + 14
        return (f'<rect class="{kind}" x="{x(since):.1f}" y="{y}" width="{wide:.1f}" height="20">'
                f"<title>{escape(said)}: {(until - since) * 1e3:.0f} ms</title></rect>")  # fmt: skip

    def text(at: float, y: float, said: str, more: str = "") -> str:
        return f'<text x="{at:.1f}" y="{y:.1f}" {more}>{escape(said)}</text>'

    drawn = [text(LEFT, 20, title, 'font-size="14"')]
    for lane, name in enumerate(("client", "server A", "gateway", "server B")):
        y = TOP + lane * LANE
        drawn += [text(LEFT - 12, y + 28, name, 'text-anchor="end" font-weight="bold"')]
        drawn += [f'<path class="grid" d="M{LEFT} {y + 24}h{WIDTH - LEFT - RIGHT}"/>']
    for at in one.tokens:
        if begin <= at <= end:
            drawn.append(f'<rect class="serve" x="{x(at) - 1:.1f}" y="{TOP + 14}" width="2" height="20"/>')
    middle = (x(one.last) + x(one.first)) / 2
    said = f"the client's pause: {(one.first - one.last) * 1e3:.0f} ms"
    drawn += [text(middle, TOP + 10, said, 'text-anchor="middle"'), bar(1, begin, 0.0, "serve", "generates")]
    drawn += _cross(x(0.0), TOP + LANE + 24)
    drawn += [text(x(0.0) + 12, TOP + LANE + 28, "kill -9", 'class="deadly" font-weight="bold"')]
    begun = max(one.asked, one.first - one.load - one.compute)
    way = begun - one.asked
    drawn += [
        bar(2, 0.0, one.lost, "see", "the loss is seen"),
        bar(2, one.lost, one.asked, "ask", "the standby is asked"),
        bar(3, one.asked, begun, "way", "the request, and the first token, on their ways"),
        bar(3, begun, begun + one.load, "load", "pages are loaded"),
        bar(3, begun + one.load, one.first, "compute", "the rest is computed"),
        bar(3, one.first, end, "serve", "generates"),
    ]
    found = f"loss seen after {one.lost * 1e3:.0f} ms, standby asked {(one.asked - one.lost) * 1e3:.1f} ms later"
    drawn += [text(x(0.0), TOP + 2 * LANE + 52, found, 'class="faint"')]
    parts = f"pages loaded in {one.load * 1e3:.0f} ms, first token {one.compute * 1e3:.0f} ms later"
    did = f"{way * 1e3:.0f} ms on the ways; {parts}"
    drawn += [text(x(one.first), TOP + 3 * LANE + 52, did, 'class="faint" text-anchor="end"')]
    drawn += _axis(begin, end, x, TOP + 4 * LANE + 8)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
    return "\n".join([f'{head} font-size="12" role="img">', STYLE, *drawn, "</svg>", ""])


def _cross(x: float, y: float) -> list[str]:
    return [f'<path class="dead" stroke-width="3" d="M{x - 7:.1f} {y - 7:.1f}l14 14M{x + 7:.1f} {y - 7:.1f}l-14 14"/>']


def _axis(begin: float, end: float, x: Callable[[float], float], y: int) -> list[str]:
    """Times, in milliseconds from the kill."""
    step = next((step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if (end - begin) / step <= TICKS_MAX), 5.0)
    drawn = [f'<path class="line" d="M{x(begin):.1f} {y}H{x(end):.1f}"/>']
    for number in range(ceil(begin / step), floor(end / step) + 1):
        at = number * step
        drawn.append(f'<path class="line" d="M{x(at):.1f} {y}v4"/>')
        drawn.append(f'<text class="faint" x="{x(at):.1f}" y="{y + 18}" text-anchor="middle">{at * 1e3:.0f} ms</text>')
    return drawn
