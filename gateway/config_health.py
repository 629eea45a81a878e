"""The part of `holdfast.yaml` that says when a server is trusted with requests."""

from typing import Self

from pydantic import Field, model_validator

from gateway.config_part import Part, wrong
from guards import breaker, flapping

_BREAKER, _FLAPPING = breaker.Plan(), flapping.Plan()


class HealthConfig(Part):
    """When a server that fails is left alone, and when one that goes down again and again is. Times in seconds."""

    breaker_window_s: float = Field(default=_BREAKER.window_s, ge=1, le=600)
    breaker_calls: int = Field(default=_BREAKER.calls, ge=1, le=100_000)  # in it; fewer are no ratio
    breaker_share: float = Field(default=_BREAKER.share, gt=0, le=1)  # of them, that failed
    breaker_open_s: float = Field(default=_BREAKER.open_s, ge=0.1, le=3600)  # then one request tries it
    breaker_open_s_max: float = Field(default=_BREAKER.open_s_max, ge=0.1, le=3600)
    breaker_probe_s: float = Field(default=_BREAKER.probe_s, ge=0.1, le=3600)  # others wait no longer for that one
    flap_soon_s: float = Field(default=_FLAPPING.soon_s, ge=0, le=86_400)  # down again within; 0: nobody flaps
    flap_wait_s: float = Field(default=_FLAPPING.wait_s, ge=0.1, le=3600)
    flap_wait_s_max: float = Field(default=_FLAPPING.wait_s_max, ge=0.1, le=86_400)
    flap_quiet_s: float = Field(default=_FLAPPING.quiet_s, ge=1, le=86_400)  # then all is forgotten

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.breaker_open_s > self.breaker_open_s_max:
            hint = f"Unsaid, breaker_open_s_max is {_BREAKER.open_s_max:g}."
            raise wrong("breaker_open_s is above breaker_open_s_max", hint)
        if self.flap_wait_s > self.flap_wait_s_max:
            raise wrong("flap_wait_s is above flap_wait_s_max", f"Unsaid, flap_wait_s_max is {_FLAPPING.wait_s_max:g}.")
        return self

    @property
    def breaker(self) -> breaker.Plan:
        """The same, as breakers take it."""
        return breaker.Plan(
            self.breaker_window_s,
            self.breaker_calls,
            self.breaker_share,
            self.breaker_open_s,
            self.breaker_open_s_max,
            self.breaker_probe_s,
        )

    @property
    def flapping(self) -> flapping.Plan:
        """The same, as trust takes it."""
        return flapping.Plan(self.flap_soon_s, self.flap_wait_s, self.flap_wait_s_max, self.flap_quiet_s)
