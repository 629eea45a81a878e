"""What operators see of the gateway, in Prometheus' terms."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Gauge, Histogram, Info, ProcessCollector, generate_latest

from gateway.watch.histogram import BatchHistogram
from gateway.watch.replica_gauges import Look, ReplicaGauges
from gateway.watch.tally import Tally
from guards.refusal import Ending, Reason

FAILOVER_GAP_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)  # promised: below 1, and below 2
FIRST_TOKEN_S = (0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 80.0)
INTER_TOKEN_S = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ADDED_LATENCY_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)


def _one_of(look: Callable[[], Mapping[str, int]], name: str) -> float:
    return look()[name]


class Metrics:
    """Counts and durations since the start, in a registry of their own.

    The number of series is bounded by the config: `model` and `replica` are configured names, never a
    client's words (a refused unknown model is counted by its reason alone), and all else comes from
    closed sets in the code. Keys and users are never labels; what they did is in the ledger and the journal.

    version: of this gateway.
    promised: counts a promise, by its class and by what became of it (of a closed set), once that is known.
    """

    def __init__(self, version: str = "") -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, CPU and descriptors of this process
        Info("holdfast_build", "Which Holdfast this is.", registry=self._registry).info({"version": version})
        self._holding = self._served = 0
        self._count_requests()
        self._measure_streams()

    def request_ended(self, model: str, ending: Ending) -> None:
        """Count a request, once, at its end."""
        self._requests.add(model, ending)
        self._served -= 1

    def tokens(
        self, model: str, prompt: int = 0, completion: int = 0, recomputed: int = 0, restored: int = 0, hedged: int = 0
    ) -> None:
        """Count tokens: read, delivered, computed again to go on elsewhere, or had there, and raced for to no use."""
        if prompt:
            self._tokens.add(model, "prompt", count=prompt)
        if completion:
            self._tokens.add(model, "completion", count=completion)
        if recomputed:
            self._tokens.add(model, "recomputed", count=recomputed)
        if restored:
            self._tokens.add(model, "restored", count=restored)
        if hedged:
            self._tokens.add(model, "hedged", count=hedged)

    def came(self, model: str, cached: int, computed: int) -> None:
        """Count the prompt of a session that came from another server between two turns."""
        self._came.add(model, "cached", count=cached)
        self._came.add(model, "computed", count=computed)

    def session_moved(self, why: str) -> None:
        """Count a session that lives elsewhere from now on. why: from a closed set."""
        self._session_moves.add(why)

    def warmed(self, replica: str, outcome: str, model: str, tokens: int) -> None:
        """Count a prompt that a server was to have loaded before it is needed. outcome: from a closed set."""
        self._warmings.add(replica, outcome)
        if tokens:
            self._tokens.add(model, "warmed", count=tokens)

    def refused(self, reason: Reason) -> None:
        """Count a request that was refused before its first byte."""
        self._refusals.add(reason)

    def failed_over(self, model: str, cause: str, gap_s: float) -> None:
        """Count a stream that went on elsewhere.

        cause: why its leg was lost; from a closed set.
        gap_s: from the last token before to the first one after, in seconds, as the client saw it.
        """
        self._failovers.add(model, cause)
        self._failover_gap.observe(gap_s)

    def continued(self, model: str, way: str) -> None:
        """Count a leg that brings the rest of a stream. way: by replay, or by ids."""
        self._continued.add(model, way)

    def leg_ended(self, replica: str, end: str) -> None:
        """Count one upstream attempt. end: how it ended; from a closed set."""
        self._legs.add(replica, end)

    def hedged(self, model: str) -> None:
        """Count a second leg beside a silent one."""
        self._hedges.add(model)

    def hedge_won(self, model: str) -> None:
        """Count a second leg that was faster."""
        self._hedges_won.add(model)

    def canary(self, replica: str, outcome: str) -> None:
        """Count a request for one token. outcome: answered, silent or refused."""
        self._canaries.add(replica, outcome)

    def verdict(self, replica: str, *, up: bool, hung: bool) -> None:
        """Note whether a replica gets requests; hung: it was ejected."""
        self._up.labels(replica).set(up)
        if hung:
            self._ejections.add(replica)

    def drained(self, replica: str) -> None:
        """Count a replica that gets no new requests any more, for its KV pages were corrupt."""
        self._drains.add(replica)

    def moved(self, reason: str) -> None:
        """Count a stream that goes on elsewhere by plan. reason: drain or move."""
        self._moves.add(reason)

    def hold_opened(self) -> None:
        """Note that a request holds budget now; `hold_settled` must follow."""
        self._holding += 1

    def hold_settled(self) -> None:
        """Note that a hold was settled."""
        self._holding -= 1

    def request_opened(self) -> None:
        """Note that a request is being served now; `request_ended` must follow."""
        self._served += 1

    def first_token(self, model: str, after_s: float) -> None:
        """Note the time from the request's arrival to its first token, in seconds."""
        self._first_token.observe(model, (after_s,))

    def inter_token(self, model: str, gaps: Iterable[float]) -> None:
        """Note one stream's gaps between tokens, in seconds; all of them at once, for there are many."""
        self._inter_token.observe(model, gaps)

    def added_latency(self, seconds: float) -> None:
        """Note the gateway's own time before a request went upstream, without its time in the queue."""
        self._added_latency.observe("", (seconds,))

    def breaker_turned(self, level: str, state: str) -> None:
        """Count a breaker that came into a state. level: org, team, user or key."""
        self._turns.add(level, state)

    def breakers(self, look: Callable[[], Mapping[str, int]]) -> None:
        """Tell how many breakers are in each state, by asking whenever the metrics are read."""
        gauge = Gauge("holdfast_breakers", "Breakers in use, by state.", ["state"], registry=self._registry)
        for state in look():
            gauge.labels(state).set_function(partial(_one_of, look, state))

    def replica_breaker_turned(self, replica: str, model: str, state: str) -> None:
        """Count a failure breaker that came into a state."""
        self._replica_turns.add(replica, model, state)

    def replicas(self, look: Look) -> None:
        """Tell what is known of each replica, by asking whenever the metrics are read."""
        self._registry.register(ReplicaGauges(look))

    def degraded(self, model: str, step: str) -> None:
        """Count what a request was answered less well by. model: that was asked for. step: from a closed set."""
        self._degraded.add(model, step)

    def waited(self, model: str, seconds: float) -> None:
        """Note how long a request waited for its turn."""
        self._waited.observe(model, (seconds,))

    def waiting(self, look: Callable[[], int]) -> None:
        """Tell how many requests wait for their turn, by asking whenever the metrics are read."""
        gauge = Gauge("holdfast_waiting", "Requests that wait for a server now.", registry=self._registry)
        gauge.set_function(look)

    def alerted(self, kind: str) -> None:
        """Count an alert. kind: from a closed set."""
        self._alerts.add(kind)

    def webhook(self, outcome: str) -> None:
        """Count an alert's way to its receiver. outcome: delivered, failed or dropped."""
        self._webhooks.add(outcome)

    def load(self, replica: str, look: Callable[[], int]) -> None:
        """Tell how many legs a replica has, by asking whenever the metrics are read."""
        self._load.labels(replica).set_function(look)

    def exposition(self) -> bytes:
        """Give all of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def _count_requests(self) -> None:
        tally, registry = self._tally, self._registry
        self._requests = tally("requests", "Requests that were admitted, by end.", "model", "ending")
        self._tokens = tally("tokens", "Tokens, by kind.", "model", "kind")
        self._refusals = tally("refusals", "Requests refused, by reason.", "reason")
        self._failovers = tally("failovers", "Streams that went on elsewhere.", "model", "cause")
        self._continued = tally("continued", "Rests of streams that were asked for elsewhere.", "model", "by")
        self._legs = tally("legs", "Upstream attempts, by end.", "replica", "end")
        self._hedges = tally("hedges", "Legs beside silent ones.", "model")
        self._hedges_won = tally("hedges_won", "Those that were faster.", "model")
        self._canaries = tally("canaries", "Requests for one token, by outcome.", "replica", "outcome")
        self._ejections = tally("ejections", "Servers found to hang.", "replica")
        self._drains = tally("drains", "Servers drained, for too many of their KV pages were corrupt.", "replica")
        self._moves = tally("moves", "Streams moved to other servers by plan, by reason.", "reason")
        self._session_moves = tally("session_moves", "Sessions that came to live elsewhere, by reason.", "reason")
        self._came = tally("session_tokens", "Prompts of those that did so between turns.", "model", "kind")
        self._warmings = tally("warmings", "Prompts that servers were to load ahead.", "replica", "outcome")
        self._turns = tally("breaker_turns", "Breakers that came into a state.", "level", "state")
        self._replica_turns = tally(
            "replica_breaker_turns", "Failure breakers that came into a state.", "replica", "model", "state"
        )
        self.promised = tally("promises", "Promises, by what became of them.", "class", "verdict").add
        self._degraded = tally("degraded", "Requests that were answered less well, by step.", "model", "step")
        self._alerts = tally("alerts", "Alerts that were told, by kind.", "kind")
        self._webhooks = tally("webhooks", "Alerts on their way to the receiver, by outcome.", "outcome")
        self._up = Gauge("holdfast_replica_up", "Whether it answers and computes.", ["replica"], registry=registry)
        self._load = Gauge("holdfast_replica_load", "Legs at it now.", ["replica"], registry=registry)
        holds = Gauge("holdfast_holds", "Requests that may spend budget now.", registry=registry)
        holds.set_function(lambda: self._holding)
        in_flight = Gauge("holdfast_requests_in_flight", "Requests that are served now.", registry=registry)
        in_flight.set_function(lambda: self._served)

    def _tally(self, name: str, help_text: str, *labels: str) -> Tally:
        tally = Tally(f"holdfast_{name}", help_text, labels)
        self._registry.register(tally)
        return tally

    def _measure_streams(self) -> None:
        registry = self._registry
        self._failover_gap = Histogram(
            "holdfast_failover_gap_seconds", "Pause that a failover cost.", buckets=FAILOVER_GAP_S, registry=registry
        )
        self._waited = BatchHistogram(
            "holdfast_turn_wait_seconds", "Time that requests waited for a server; of those that did.",
            "model", FIRST_TOKEN_S,
        )  # fmt: skip
        registry.register(self._waited)
        self._first_token = BatchHistogram(
            "holdfast_time_to_first_token_seconds", "From arrival to the first token.", "model", FIRST_TOKEN_S
        )
        registry.register(self._first_token)
        self._added_latency = BatchHistogram(
            "holdfast_added_latency_seconds", "The gateway's own time.", None, ADDED_LATENCY_S
        )
        registry.register(self._added_latency)
        self._inter_token = BatchHistogram(
            "holdfast_inter_token_seconds", "Gap between two tokens of a stream.", "model", INTER_TOKEN_S
        )
        registry.register(self._inter_token)
