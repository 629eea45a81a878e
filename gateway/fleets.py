"""The servers that a configuration names: where they are, how they are asked, and who looks after them."""

from collections.abc import Callable
from functools import partial

from gateway.config import Config
from gateway.config import Replica as ReplicaConfig
from gateway.config_times import ModelTimes
from gateway.fleet import gauges, page_status
from gateway.fleet.canary import COMPLETIONS, Ask
from gateway.fleet.inspector import Inspector
from gateway.fleet.kin import Kin
from gateway.fleet.page_status import Pages
from gateway.fleet.pulse import Pulse
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Care, Fleet
from gateway.stream.leg import Target, UpstreamLimits
from gateway.stream.leg_end import LegEnd
from gateway.stream.upstream import Upstream
from gateway.verdicts import Verdicts, measured
from gateway.watch.metrics import Metrics
from guards.integrity import Corruption
from guards.routing import Slack

NO_TIMES = ModelTimes()
BYTES_MAX = {"/metrics": gauges.PAGE_BYTES_MAX, page_status.PATH: page_status.BYTES_MAX}  # of answers, by path


def fleet(config: Config, ask: Ask, metrics: Metrics, clock: Callable[[], float], listener: Verdicts) -> Fleet:
    """Build the fleet; nothing is asked yet."""
    models = {replica.name: model.name for model in config.models for replica in model.replicas}
    timeouts, limits, plan = config.timeouts, config.limits, config.integrity.plan
    replicas = [
        Replica(
            one.name,
            one.role == "standby",
            models.get(one.name),
            pulse=Pulse(timeouts.suspect_s),
            share=one.weight,
            pages=Pages(Corruption(plan)),
            bound=config.integrity.same_fingerprint,
        )
        for one in config.replicas
    ]
    for one in replicas:
        metrics.load(one.name, partial(getattr, one, "load"))
    metrics.replicas(lambda: measured(replicas, clock(), listener.lodged()))
    care = Care(
        probe_every_s=timeouts.probe_every_s,
        probe_s=timeouts.probe_s,
        canary_s=timeouts.canary_s,
        hedges_per_s=limits.hedges_per_s,
        hedges_burst=limits.hedges_burst,
        retry_share=config.retries.percent / 100,
        retries_per_s=config.retries.per_s,
        breakers=config.health.breaker,
        flaps=config.health.flapping,
    )
    slack = Slack(config.routing.load_ratio, config.routing.load_tokens)
    return Fleet(replicas, ask, listener, care, clock, slack)


def inspector(config: Config, ask: Ask, fleet: Fleet, clock: Callable[[], float], listener: Verdicts) -> Inspector:
    """Build who asks after KV pages."""
    return Inspector(fleet.all(), ask, listener, clock, config.integrity.ask_every_s)


def kin(ask: Ask, fleet: Fleet, clock: Callable[[], float], listener: Verdicts) -> Kin:
    """Build who compares the replicas of a model."""
    return Kin(fleet.all(), ask, listener, clock)


def asking(targets: dict[str, Target], upstream: Upstream, metrics: Metrics) -> Ask:
    """How small questions are put to replicas; those for a token are counted."""

    async def ask(name: str, path: str, body: bytes | None, timeout_s: float) -> LegEnd:
        end = await upstream.fetch(targets[name], path, body, timeout_s, BYTES_MAX.get(path))
        if path == COMPLETIONS:
            metrics.canary(name, "answered" if end.status == 200 else "silent" if end.silent else "refused")
        return end

    return ask


def targets(config: Config) -> dict[str, Target]:
    """Where replicas listen, and how patient their model is, by name."""
    found = {replica.name: target(replica) for replica in config.upstreams}
    for model in config.models:
        found |= {replica.name: target(replica, model.timeouts) for replica in model.replicas}
    return found


def target(replica: ReplicaConfig, times: ModelTimes = NO_TIMES) -> Target:
    """Where one listens."""
    key = replica.key.get_secret_value() if replica.key is not None else None
    of = times.first_token_s, times.between_tokens_s
    return Target(replica.name, replica.host, replica.port, replica.tls, key, *of)


def upstream_limits(config: Config) -> UpstreamLimits:
    """How patient and how roomy the client to them is."""
    timeouts, limits = config.timeouts, config.limits
    return UpstreamLimits(
        connect_s=timeouts.connect_s,
        first_token_s=timeouts.first_token_s,
        between_tokens_s=timeouts.between_tokens_s,
        event_bytes=limits.event_bytes,
        answer_bytes=limits.answer_bytes,
        idle_s=timeouts.idle_s,
        idle_connections=limits.idle_connections,
    )
