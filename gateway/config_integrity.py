"""The part of `holdfast.yaml` that says what follows from corrupt KV pages."""

from pydantic import Field

from gateway.config_part import Part
from guards.integrity import Plan

_PLAN = Plan()


class IntegrityConfig(Part):
    """When a server whose plugin finds corrupt KV pages gets no new requests. Times in seconds."""

    drain: bool = _PLAN.drains  # else they are only shown
    corrupt_pages_max: int = Field(default=_PLAN.pages_max, ge=0, le=1_000_000)  # in the window; 0: one is too many
    window_s: float = Field(default=_PLAN.window_s, ge=10, le=7 * 86_400)
    ask_every_s: float = Field(default=5.0, ge=0, le=3600)  # 0: never
    same_fingerprint: bool = False  # streams go on elsewhere only under the one they began under; unknown: nowhere

    @property
    def plan(self) -> Plan:
        """The same, as whoever counts pages takes it."""
        return Plan(self.corrupt_pages_max, self.window_s, self.drain)
