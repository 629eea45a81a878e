"""The product, built as `gateway.app` builds it, on a simulated network and disk. Constructors are known only here."""

from collections.abc import Callable
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from gateway import app, fleets
from gateway.asides import Asides
from gateway.books.tenants import Tenant
from gateway.config import Config, Limits, Model, Replica, Timeouts
from gateway.config_health import HealthConfig
from gateway.config_service import DEFAULT, AdmissionConfig, ClassConfig, TierConfig
from gateway.deadlines import Deadlines
from gateway.flow import Flow
from gateway.quote import Quotes
from gateway.rates import Rates
from gateway.record import Record, Records
from gateway.stream.call import Call
from gateway.stream.seams import Sink
from gateway.stream.text import Decoder, LocalDecoder, RemoteDecoder
from gateway.stream.upstream import Upstream
from gateway.verdicts import Verdicts
from gateway.watch.metrics import Metrics
from tests.gateway.stage import continuing
from tests.gateway.stream.vllm_text import tokenizer
from tests.sim.books import Facts, SimLedger
from tests.sim.loop import SimLoop
from tests.sim.plan import PRICE, Plan

NO_TLS: Any = SimpleNamespace(create_default_context=lambda: None)  # reading the CAs takes 20 ms


def host(number: int) -> str:
    """The address of a server."""
    return f"10.0.0.{number + 1}"


class SimMetrics(Metrics):
    """The real metrics; tells of verdicts."""

    def __init__(self) -> None:
        super().__init__()
        self.on_verdict: Callable[[str, bool, bool], None] = lambda name, up, hung: None

    def verdict(self, name: str, *, up: bool, hung: bool) -> None:
        super().verdict(name, up=up, hung=hung)
        self.on_verdict(name, up, hung)

    @property
    def busy(self) -> dict[str, float | None]:
        """What must go back to zero."""
        names = ("holdfast_requests_in_flight", "holdfast_holds")
        return {name: self._registry.get_sample_value(name) for name in names}


class SimRecords(Records):
    """The real records; each is told of when it is opened."""

    on_open: Callable[[Call, Record], None] = lambda call, record: None

    def open(self, call: Call, tenant: Tenant, sink: Sink) -> Record:
        record = super().open(call, tenant, sink)
        self.on_open(call, record)
        return record


class Gateway:
    """One process of the gateway."""

    def __init__(self, plan: Plan, loop: SimLoop, ledger: SimLedger, facts: Facts, metrics: SimMetrics) -> None:
        config = _config(plan)
        targets = {replica.name: fleets.target(replica) for replica in config.replicas}
        with patch("gateway.stream.upstream.ssl", NO_TLS):
            self.upstream = Upstream(fleets.upstream_limits(config))
        journal: Any = facts
        listener = Verdicts(journal.append, metrics, self.upstream.abandon)
        ask = fleets.asking(targets, self.upstream, metrics)
        self.fleet = fleets.fleet(config, ask, metrics, loop.time, listener)
        asides = Asides(self.fleet, self.upstream, targets)
        limits = config.limits
        quotes = Quotes(
            ledger,
            self.fleet,
            asides,
            partial(_decoders, plan, asides),
            prices={"tiny": PRICE},
            lease_tokens=limits.lease_tokens,
            low_tokens=limits.lease_low_tokens,
            legs_max=limits.legs,
            hedges_max=limits.hedges,
            draw=partial(Random(plan.seed).getrandbits, 31),
        )
        self.records = SimRecords(journal, metrics, loop.time, quotes.lengths.note)
        self.deadlines = Deadlines(config.timeouts.total_s)
        rates = Rates(quotes.lengths, lambda: int(loop.time() * 1e9))
        self.turns = app._turns(config, self.fleet, metrics, loop.time, listener)
        self.flow = Flow(
            rates, quotes, self.turns, self.fleet, self.upstream, targets, self.records, self.deadlines, loop.time
        )  # fmt: skip
        _teach(plan, quotes, self.fleet.all())
        for replica, server in zip(self.fleet.all(), plan.servers, strict=True):
            if server.continues:
                replica.pages = continuing(at_s=1e9)  # the newest news for ever

    def replicas(self) -> list[Any]:
        """As the fleet sees them."""
        return self.fleet.all()

    def pooled(self) -> int:
        """Connections that are kept for later."""
        return sum(len(idle) for idle in self.upstream._idle.values())

    def legs(self) -> int:
        """Legs that are on their way, questions included."""
        return sum(len(legs) for legs in self.upstream._legs.values())


def outrun(answer: Any) -> bool:
    """Whether a leg goes on though others bring all that it was asked for."""
    parts = getattr(answer, "_parts", ())
    if len(parts) < 2 or not answer.open:
        return False
    choices = answer._telling.choices
    idle = [part for part in parts if not part.racing and not part.leg.over]
    return any(all(choices[n].owner not in (part, None) for n in part.choices) for part in idle)


def _config(plan: Plan) -> Config:
    replicas = tuple(
        Replica(url=f"http://{host(number)}:8000", name=f"s{number}", role="standby" if one.standby else "active")
        for number, one in enumerate(plan.servers)
    )
    timeouts = Timeouts(
        first_token_s=plan.first_token_s,
        between_tokens_s=plan.between_tokens_s,
        total_s=plan.total_s,
        probe_every_s=plan.probe_every_s,
        suspect_s=min(0.05, plan.between_tokens_s),
    )
    limits = Limits(
        legs=plan.legs,
        hedges=plan.hedges,
        hedges_burst=plan.hedges_burst,
        lease_tokens=plan.lease_tokens,
        lease_low_tokens=plan.low_tokens,
    )
    health = HealthConfig(breaker_calls=plan.breaker_calls, breaker_open_s=0.5, flap_wait_s=1.0)
    admission = AdmissionConfig()
    if plan.at_once is not None:
        admission = AdmissionConfig(per_replica=plan.at_once, wait_s=plan.total_s / 2)
    models = (Model(name="tiny", replicas=replicas),)
    tiers = ()
    if plan.promised_ms is not None:
        tiers = (TierConfig(name=DEFAULT, classes=(ClassConfig(name="all", first_ms=plan.promised_ms),)),)
    return Config(models=models, timeouts=timeouts, health=health, limits=limits, admission=admission, tiers=tiers)


def _decoders(plan: Plan, asides: Asides, call: Call) -> tuple[Callable[[], Decoder], bool]:
    if plan.tokenizer:
        return partial(LocalDecoder, tokenizer(), call.skip_special), False
    return partial(RemoteDecoder, partial(asides.text, call.model), singly=bool(call.stop)), True


def _teach(plan: Plan, quotes: Quotes, replicas: list[Any]) -> None:
    """What a gateway that has run for a while knows."""
    if plan.likely is not None:
        for prompt in (1, 2, 4, 8, 1500, 2500):  # as they are counted, and as they are bounded
            for _ in range(10):
                quotes.lengths.note("tiny", prompt, plan.likely)
    if plan.patience_s is not None:
        for replica in replicas:
            replica.pulse.between.patience_s = plan.patience_s
            for size in range(2, 12):
                replica.pulse.first(1 << (2 * size)).patience_s = 4 * plan.patience_s
