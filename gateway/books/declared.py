"""What the configuration says of scopes, beside their limits: it is read once, and no command changes it."""

from gateway.config import Bounded
from guards.burn import Plan
from guards.rate import Counted, Rate
from guards.timeouts import UNSAID, Times, tightest


class Declared:
    """By scope: rates, plans of breakers (of «» for all), times, whether too long prompts are cut, and tiers."""

    def __init__(self, plan: Plan | None) -> None:
        self.rates: dict[str, tuple[tuple[Counted, Rate], ...]] = {}
        self.plans: dict[str, Plan] = {} if plan is None else {"": plan}
        self.times: dict[str, Times] = {}
        self.truncates: dict[str, bool] = {}
        self.tiers: dict[str, str] = {}

    def take(self, at: str, said: Bounded) -> None:
        """Take in what one entry says of a scope."""
        self.rates[at] = (*self.rates.get(at, ()), *said.rates)
        if said.breaker is not None:
            self.plans[at] = said.breaker.plan
        if said.over_context is not None:
            self.truncates[at] = said.over_context == "truncate"
        if said.tier is not None:
            self.tiers[at] = said.tier
        if said.timeouts is not None:
            self.times[at] = tightest((self.times.get(at, UNSAID), said.timeouts.times))
