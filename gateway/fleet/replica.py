"""One vLLM server, as the fleet knows it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gateway.fleet.course import Course
from gateway.fleet.gauges import Gauges
from gateway.fleet.page_status import Pages
from gateway.fleet.pulse import Pulse
from guards.breaker import Breaker
from guards.continuing import Continues
from guards.flapping import Trust
from guards.health import Health
from guards.kinship import UNKNOWN, Origin, Traits, bond
from guards.peers import ALIKE, Comparison
from guards.routing import Candidate

_new = tuple.__new__  # what a NamedTuple's own does, twice as fast: every leg looks at every replica

LEAVING = "an operator drains it"
NONE: frozenset[str] = frozenset()


@dataclass
class Replica:
    """What is known of one server. Times in seconds of the fleet's clock.

    model: the model it is configured to serve; None where it is discovered.
    serves: each model it told of, with its length limit in tokens.
    tokens: that the legs there likely take.
    weight: how much it takes beside the others: share, as it is configured, or less where it is much worse than they.
    idle_s: since when it has had nothing of ours to do, if it has nothing.
    ttft_s: until the first token of the request that is being looked at; None where nobody predicts it.
    since_s: when it came to be up, or down.
    trust: what its ups and downs come to.
    breakers: of each model it was sent requests for, and serves.
    gauges: what it last said of itself; beside: how it compares with the others of its model, as of beside_s.
    pages: what it said of its KV pages.
    leaving: whether an operator drains it.
    traits: what was found of it, by model, and apart: in what it differs from the others. kin_asked: when it was asked
        for that, and its fingerprints then.
    bound: whether a stream goes on elsewhere only under the same fingerprint.
    """

    name: str
    standby: bool = False
    model: str | None = None
    serves: dict[str, int | None] = field(default_factory=dict)  # model -> window in tokens
    health: Health = field(default_factory=Health)
    load: int = 0
    tokens: int = 0
    share: float = 1.0
    weight: float = 1.0
    pulse: Pulse = field(default_factory=Pulse)
    tokens_seen: int = 0  # at the last probe
    quiet: int = 0  # probes in a row that found requests waiting and no token since the one before
    since_s: float = 0.0
    idle_s: float = 0.0
    trust: Trust = field(default_factory=Trust)
    breakers: dict[str, Breaker] = field(default_factory=dict)
    gauges: Gauges | None = None
    course: Course = field(default_factory=Course)
    ttft_s: float | None = None
    beside: Comparison = ALIKE
    beside_s: float = 0.0
    pages: Pages = field(default_factory=Pages)
    leaving: bool = False
    traits: dict[str, Traits] = field(default_factory=dict)
    apart: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kin_asked: dict[str, tuple[float, frozenset[str]]] = field(default_factory=dict)
    bound: bool = False

    @property
    def any_model(self) -> str | None:
        """A model to ask it for."""
        return self.model or next(iter(self.serves), None)

    @property
    def drained(self) -> bool:
        """Whether it gets no new requests while any other one can have them."""
        return self.leaving or self.pages.corruption.drained is not None

    @property
    def why_drained(self) -> str | None:
        """An operator drains it, or too many of its pages went bad, or both; None: it is not drained."""
        reasons = (LEAVING if self.leaving else None, self.pages.corruption.drained)
        return "; ".join(one for one in reasons if one is not None) or None

    @property
    def fingerprints(self) -> frozenset[str]:
        """Of its weights, configuration and layout, as its plugin says; none where that is not known."""
        return frozenset(self.pages.status.fingerprints) if self.pages.status is not None else frozenset()

    def continues(self, now_s: float) -> Continues | None:
        """Which streams of others it can continue by replay; None: none, or that is not known now."""
        return self.pages.continues(self.since_s, now_s)

    @property
    def stores(self) -> bool:
        """Whether its plugin keeps pages outside of it, where others of its fingerprint find them."""
        return self.pages.status is not None and self.pages.status.store is not None

    def bond(self, now_s: float) -> frozenset[str]:
        """The fingerprints that a stream which begins there now is bound to; none where it is not, or nobody knows."""
        return self.pages.bond(self.since_s, now_s) if self.bound else NONE

    def takes(self, bonds: Iterable[frozenset[str]], now_s: float) -> bool:
        """Whether streams with these bonds may go on there, as far as those are concerned."""
        if not self.bound:
            return True
        mine = self.bond(now_s)
        return bool(mine) and all(one == mine for one in bonds)

    def like(self, model: str, now_s: float) -> Traits:
        """What a server must have that is to go on with a stream of its own; the fingerprint only where it is bound."""
        traits = self.traits.get(model, UNKNOWN)
        return traits._replace(model=bond(self.bond(now_s))) if self.bound else traits

    def origin(self, model: str, now_s: float, began: frozenset[str] | None = None) -> Origin:
        """It, as where a stream of that model comes from.

        began: what the stream was bound to when it began there; None: it begins now. The server may have been started
            anew meanwhile, or be down: what it says now need not be what the stream's tokens were computed with.
        """
        traits = self.like(model, now_s)
        if self.bound and began is not None:
            traits = traits._replace(model=bond(began))
        return Origin(traits, began or self.fingerprints)

    def good(self, model: str, now_s: float) -> bool:
        """Whether nothing speaks against sending it a request for that model, as mostly nothing does."""
        if self.standby or not self.health.up or self.trust.from_s > now_s or self.pulse.doubtful or self.drained:
            return False
        breaker = self.breakers.get(model)
        return breaker is None or breaker.allowing or not breaker.refuses

    def candidate(self, model: str, now_s: float) -> Candidate:
        """It, for a request for that model."""
        breaker = self.breakers.get(model)
        refused = (breaker is not None and breaker.refuses) or self.trust.waits(now_s)
        up, doubtful = bool(self.health.up), self.pulse.doubtful
        said = self.name, up, self.standby, self.load, doubtful, refused, self.tokens, self.weight, self.ttft_s
        return _new(Candidate, (*said, self.drained, 0))

    def breaker(self, model: str, make: Callable[[], Breaker]) -> Breaker:
        """The breaker of that model, made when it is first needed."""
        found = self.breakers.get(model)
        if found is None:
            found = self.breakers[model] = make()
        return found

    def told(self, serves: dict[str, int | None]) -> None:
        """It says what it serves; breakers of other models are forgotten."""
        self.serves = serves
        self.breakers = {model: one for model, one in self.breakers.items() if model in (self.model, *serves)}
