"""The parts of `holdfast.yaml` that say whose turn it is, and what requests are promised."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gateway.config_part import Part, wrong
from gateway.config_times import TurnTimes
from gateway.config_warming import HotStandbyConfig
from guards.admission import Bounds
from guards.ladder import Step
from guards.place import BANDS, MANY, Rank
from guards.retries import PER_S, SHARE
from guards.sla import Objective, ServiceClass, Slope, Tier

DEFAULT = "default"  # the tier of keys for which nobody says another
_BOUNDS = Bounds()
TOKENS_MAX = 10_000_000
MS_MAX = 3_600_000

TierName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
Tokens = Annotated[int, Field(ge=1, le=TOKENS_MAX)]
Ms = Annotated[float, Field(gt=0, le=MS_MAX)]
MsPer1k = Annotated[float, Field(ge=0, le=MS_MAX)]


def _once(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    if len(set(steps)) < len(steps):
        raise wrong("the same step twice", "Write each once, in the order in which they are tried.")
    return steps


class AdmissionConfig(Part):
    """Where requests wait for a server, and for how long. Of several workers each has its part of all numbers."""

    on: bool = True  # else requests are sent as they come, and wait at the servers
    # In all; one tenant has at most half of the rest. Unsaid, half of limits.requests_in_flight, which count them too.
    waiting: int | None = Field(default=None, ge=1, le=1_000_000)
    wait_s: float = Field(default=_BOUNDS.wait_s, gt=0, le=3600)
    rise_s: float = Field(default=_BOUNDS.rise_s, gt=0, le=3600)  # waited so long in a band, who is next rises one
    refuse_late: bool = True  # what is predicted to miss its time to the first token
    fair_by: Literal["key", "user", "team", "org"] = "key"  # between whom turns are shared
    per_model: int = Field(default=_BOUNDS.model, ge=1, le=MANY)  # requests at once, of each depth of agents
    per_agent: int = Field(default=_BOUNDS.agent, ge=1, le=MANY)
    per_replica: int = Field(default=_BOUNDS.server, ge=1, le=1_000_000)

    def bounds(self, requests_in_flight: int) -> Bounds:
        """The same, as admission takes it."""
        waiting = max(1, requests_in_flight // 2) if self.waiting is None else self.waiting
        return Bounds(waiting, self.wait_s, self.rise_s, self.per_model, self.per_agent, self.per_replica)


class DegradeConfig(Part):
    """What becomes of requests that servers are too busy for, in order; no steps: they are refused.

    shorter: answers of answer_tokens at most. cheaper: the model's `cheaper` answers.
    """

    steps: Annotated[tuple[Literal[Step.SHORTER, Step.CHEAPER], ...], Field(max_length=2), AfterValidator(_once)] = ()
    answer_tokens: int = Field(default=1024, ge=1, le=2**20)


class RetriesConfig(Part):
    """How many requests are asked again elsewhere where servers answer with errors, before the first byte.

    percent: of the requests of the last ten seconds. per_s: beside that; of several workers each has its part.
    """

    percent: int = Field(default=round(SHARE * 100), ge=0, le=100)
    per_s: float = Field(default=PER_S, ge=0, le=10_000)


class ClassTimes(Part):
    """How long a request of a class may take before it is ended, in seconds; unsaid, as its tier says."""

    total_s: float | None = Field(default=None, ge=1, le=86_400)


class ClassConfig(Part):
    """What requests up to some size are promised; milliseconds. A base, and more for each thousand tokens.

    first: until the first token, by tokens of the prompt that have to be computed. between: the mean time between two.
    total: until the last one, by tokens of the answer. input_max, output_max: the largest; unsaid, any.
    timeouts: not what is promised, but what is not gone beyond.
    """

    name: TierName
    input_max: Tokens | None = None
    output_max: Tokens | None = None
    first_ms: Ms | None = None
    first_ms_per_1k_tokens: MsPer1k = 0
    between_ms: Ms | None = None
    total_ms: Ms | None = None
    total_ms_per_1k_tokens: MsPer1k = 0
    timeouts: ClassTimes = ClassTimes()

    @model_validator(mode="after")
    def _sensible(self) -> "ClassConfig":
        for name in ("first_ms", "total_ms"):
            if getattr(self, name) is None and getattr(self, f"{name}_per_1k_tokens"):
                raise wrong(f"{name}_per_1k_tokens means nothing without {name}", f"Add {name}: it is the base.")
            limit_s, promised_ms = self.timeouts.total_s, getattr(self, name)
            if limit_s is not None and promised_ms is not None and limit_s * 1e3 < promised_ms:
                raise wrong(f"timeouts.total_s is shorter than {name}", "What ends it is not before what is due.")
        return self

    @property
    def service_class(self) -> ServiceClass:
        """The same, as promises take it."""
        objective = Objective(
            _slope(self.first_ms, self.first_ms_per_1k_tokens),
            None if self.between_ms is None else self.between_ms / 1e3,
            _slope(self.total_ms, self.total_ms_per_1k_tokens),
        )
        return ServiceClass(self.name, objective, self.input_max, self.output_max, self.timeouts.total_s)


class AskedConfig(Part):
    """The shortest time to the first token that a client may ask for with `x-slo-ttft-ms`; milliseconds."""

    ms: Ms
    ms_per_1k_tokens: MsPer1k = 0


def _distinct(classes: tuple[ClassConfig, ...]) -> tuple[ClassConfig, ...]:
    names = [one.name for one in classes]
    if len(set(names)) < len(names):
        raise wrong("two classes have one name", "Give each a name of its own: they label what was kept.")
    for at, one in enumerate(classes):
        if (before := next((other for other in classes[:at] if _takes_all_of(other, one)), None)) is not None:
            hint = f"Write it before {before.name}, which takes all that it would."
            raise wrong(f"no request is of class {one.name}", hint)
    return classes


def _takes_all_of(one: ClassConfig, other: ClassConfig) -> bool:
    bounds = (one.input_max, other.input_max), (one.output_max, other.output_max)
    return all(mine is None or (its is not None and its <= mine) for mine, its in bounds)


class TierConfig(Part):
    """A kind of keys: when their turn is, and what they are promised.

    priority: 0 goes first, 3 last; where servers schedule by priority they are told the same.
    weight: its share beside other tenants of its priority. permits: requests of one tenant at once.
    classes: those with the tightest bounds first; a request is of the first that takes it.
    timeouts: of all its keys. hot_standby: whether, and how, their sessions have a second replica.
    """

    name: TierName
    priority: int = Field(default=1, ge=0, le=BANDS - 1)
    weight: float = Field(default=1.0, ge=0.01, le=1000)
    permits: int = Field(default=MANY, ge=1, le=MANY)
    asked: AskedConfig | None = None
    timeouts: TurnTimes = TurnTimes()
    hot_standby: HotStandbyConfig | None = None
    classes: Annotated[tuple[ClassConfig, ...], Field(max_length=64), AfterValidator(_distinct)] = ()

    @model_validator(mode="after")
    def _asks_for_something(self) -> "TierConfig":
        if self.asked is not None and not self.classes:
            raise wrong("asked means nothing without classes", "Add classes: what they may ask for is of one.")
        return self

    @property
    def rank(self) -> Rank:
        """The same, as turns take it."""
        asked = None if self.asked is None else _slope(self.asked.ms, self.asked.ms_per_1k_tokens)
        promises = None
        if self.classes:
            promises = Tier(self.name, tuple(one.service_class for one in self.classes), asked)
        return Rank(self.name, self.priority, self.weight, self.permits, promises)


def _slope(base_ms: float | None, per_1k_ms: float) -> Slope | None:
    return None if base_ms is None else Slope(base_ms / 1e3, per_1k_ms / 1e6)
