"""The parts of `holdfast.yaml` that say what servers load ahead."""

from pydantic import Field

from gateway.config_part import Part
from guards.warmth import Bounds, Policy

_BOUNDS, _POLICY = Bounds(), Policy()


class WarmingConfig(Part):
    """How much is loaded ahead, for planned moves and hot standbys. Of several workers each has its part of it."""

    at_once: int = Field(default=_BOUNDS.at_once, ge=1, le=1024)  # in all
    per_replica: int = Field(default=_BOUNDS.per_replica, ge=1, le=1024)
    within_s: float = Field(default=_BOUNDS.within_s, gt=0, le=60)  # for one, its wait included

    @property
    def bounds(self) -> Bounds:
        """The same, as whoever has it loaded takes it."""
        return Bounds(self.at_once, self.per_replica, self.within_s)


class HotStandbyConfig(Part):
    """Sessions keep their pages loaded at a second replica: at the end of each turn, and while a stream is long."""

    every_tokens: int = Field(default=_POLICY.every_tokens, ge=16, le=10_000_000)  # of a stream that is not over
    every_s: float = Field(default=_POLICY.every_s, ge=0.25, le=3600)  # and not sooner than that

    @property
    def policy(self) -> Policy:
        """The same, as whoever decides takes it."""
        return Policy(self.every_tokens, self.every_s)
