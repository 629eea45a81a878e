"""A server that goes down again soon after it came up waits longer each time before it is sent requests. Pure."""

from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple


class Plan(NamedTuple):
    """How flapping is told, and what it costs. Times in seconds.

    soon_s: going down again within so long after coming back up is flapping.
    wait_s, wait_s_max: how long it then waits once it is up again; twice as long each further time, up to the latter.
    quiet_s: being up for so long makes all of it forgotten.
    """

    soon_s: float = 60.0
    wait_s: float = 2.0
    wait_s_max: float = 120.0
    quiet_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Trust:
    """What one server's ups and downs come to.

    flaps: how often it went down soon after it had come up, since it was last quiet.
    up_s: when it came up; None while it is down. back: whether it had been up before.
    from_s: when it may be sent requests again; it may always be where it is the last one.
    """

    flaps: int = 0
    up_s: float | None = None
    back: bool = False
    from_s: float = -inf

    def up(self, now_s: float, plan: Plan) -> "Trust":
        """It came up."""
        wait_s = min(plan.wait_s * 2.0 ** min(self.flaps - 1, 64), plan.wait_s_max) if self.flaps else 0.0
        return replace(self, up_s=now_s, from_s=now_s + wait_s)

    def down(self, now_s: float, plan: Plan) -> "Trust":
        """It went down; the time that it waited does not count as good behaviour."""
        if self.up_s is None:
            return self
        well_s = now_s - max(self.up_s, self.from_s)
        flaps = 0 if well_s >= plan.quiet_s else self.flaps
        return replace(self, flaps=flaps + (self.back and well_s < plan.soon_s), up_s=None, back=True)

    def waits(self, now_s: float) -> bool:
        """Whether it is up, and not trusted yet."""
        return self.up_s is not None and now_s < self.from_s

    def known(self, now_s: float, plan: Plan) -> int:
        """Its flaps, as far as they are not forgotten."""
        quiet = self.up_s is not None and now_s - max(self.up_s, self.from_s) >= plan.quiet_s
        return 0 if quiet else self.flaps
