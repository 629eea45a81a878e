"""The replicas of each model: probed, counted, picked."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import structlog

from gateway.fleet.answers import cards, verdict
from gateway.fleet.canary import Ask, Canary
from gateway.fleet.gauges import read
from gateway.fleet.heirs import heir
from gateway.fleet.listener import Listener
from gateway.fleet.pulse import Watch
from gateway.fleet.replica import Replica
from guards import breaker, flapping, routing
from guards.allowance import Allowance
from guards.breaker import Breaker, Entry
from guards.continuing import Continues, Way, by_ids
from guards.health import Health, Probe
from guards.kinship import Origin
from guards.peers import ALIKE, Vitals, compared
from guards.retries import PER_S, SHARE, Retries
from guards.routing import Candidate, Slack

log = structlog.get_logger()

LOOKS_MAX = 3  # at a replica that lost a leg, before the next round of probes
LOOK_AGAIN_S = 0.1
QUIET_PROBES = 5
CANARY_GAPS = 3  # a canary may take so many of the longest usual gaps: a verdict costs more than a race
EXAMINATIONS_MAX = 5  # of one silence; a later one is examined anew
BREAKERS, FLAPPING = breaker.Plan(), flapping.Plan()  # unless they are configured otherwise
FRESH_S = 10.0  # gauges that are older, and three rounds of probes, say nothing of now
PEERS_MAX = 32  # that one is compared with
NOBODY: frozenset[str] = frozenset()
BESIDE_S = 30.0  # a server that was worse, and of which nothing was heard since, is tried again


@dataclass(frozen=True)
class Care:
    """How closely a fleet looks. Times in seconds.

    probe_every_s, probe_s: between probes of one replica, and for one probe.
    canary_s: for one token, on a server that is silent or comes back.
    hedges_per_s, hedges_burst: how many second legs all requests together may open.
    retry_share, retries_per_s: how many requests may be asked again where servers answer with errors.
    breakers, flaps: when a server that fails, or goes down again and again, is left alone.
    """

    probe_every_s: float
    probe_s: float
    canary_s: float = 2.0
    hedges_per_s: float = 10.0
    hedges_burst: int = 64
    retry_share: float = SHARE
    retries_per_s: float = PER_S
    breakers: breaker.Plan = BREAKERS
    flaps: flapping.Plan = FLAPPING


class Fleet:
    """Knows every replica and its health. Probes run in `run`; suspicions are looked into at once.

    ask: puts a small question to a replica: GET, or POST where there is a body.
    listener: told of verdicts, breakers and comparisons.
    clock: seconds; monotonic.
    slack: how much more than its share a replica may have of what is near to it.
    """

    def __init__(
        self,
        replicas: list[Replica],
        ask: Ask,
        listener: Listener,
        care: Care,
        clock: Callable[[], float],
        slack: Slack = routing.SLACK,
    ) -> None:
        self._slack = slack
        self._replicas = {replica.name: replica for replica in replicas}
        self._ask, self._listener, self._care, self._clock = ask, listener, care, clock
        for replica in replicas:
            replica.since_s = replica.idle_s = clock()
            replica.weight = replica.share
        self._canary = Canary(ask, care.probe_s)
        self._hedges = Allowance(care.hedges_per_s, care.hedges_burst)
        self._retries = Retries(care.retry_share, care.retries_per_s)
        self._serving: dict[str, list[Replica]] = {}  # those of each model
        self._busy: dict[str, asyncio.Future[None]] = {}  # who is being looked at, or examined

    @property
    def models(self) -> list[str]:
        """Every model that is configured or was discovered, in a stable order."""
        named = [r.model for r in self._replicas.values() if r.model is not None]
        found = [m for r in self._replicas.values() if r.model is None for m in r.serves]
        return list(dict.fromkeys(named + found))

    def knows(self, model: str) -> bool:
        return bool(self._for(model))

    def window(self, model: str) -> int | None:
        """The model's length limit in tokens; None while no replica has told it."""
        for replica in self._for(model):
            if (window := replica.serves.get(model)) is not None:
                return window
        return None

    def pick(
        self, model: str, avoid: frozenset[str], near: int | None = None, missing: frozenset[str] = NOBODY,
        origins: Sequence[Origin] = (), way: Callable[[Continues | None], Way | None] = by_ids, home: str | None = None,
    ) -> str | None:  # fmt: skip
        """Name the replica for the next leg; None when there is none left to try. near, home: see `guards.routing`.

        missing: those of `avoid` where nobody was. They are tried again when nothing else is left at all: one that has
        only just died is up until somebody has looked, and would take all that a request may try meanwhile.
        origins: those that brought of it what the client has, if it has any of it, and way: how it can go on: see
            `heir`.
        """
        if origins:
            return heir(self._for(model), model, origins, avoid, missing, near, self._slack, self._clock(), way, home)
        good = self._good(model)
        if avoid:
            good = [one for one in good if one.name not in avoid]
        if good:
            return routing.choose(good, near, self._slack, home=home).name
        known = self._candidates(self._for(model), model)
        there = [one for one in known if one.name not in missing]
        found = routing.pick(there, avoid, near, self._slack, home=home)
        return found or routing.pick(known, avoid, near, self._slack, home=home)

    def with_room(
        self,
        model: str,
        near: int | None,
        fits: Callable[[str], bool],
        first_s: Callable[[Replica], float] | None = None,
        left_s: float = inf,
        home: str | None = None,
    ) -> str | None:
        """Name the replica for a request that waits; None while all that it could go to are full.

        first_s: predicts when its first token would come there; None where nobody asks for that.
        left_s: by when that is due, from now. Who would be late is passed over if another one would be in time.

        Where none is up it goes to one that is not, as a leg would: the verdict may be stale. But to no more than have
        room, for it may also be that it is only too busy to answer its probes.
        """
        good = self._good(model)
        compared_s = first_s if len(good) > 1 else None
        if good:
            chosen = routing.choose(good, near, self._slack, home=home)
            soon = compared_s is None or routing.soon(compared_s(chosen), near, self._slack, left_s)
            if soon and fits(chosen.name):  # as it mostly is, and the others need not be looked at
                return chosen.name
        if good := [one for one in good if fits(one.name)]:
            if compared_s is None:
                return routing.choose(good, near, self._slack, home=home).name
            timed = [one._replace(ttft_s=compared_s(self._replicas[one.name])) for one in self._candidates(good, model)]
            return routing.choose(timed, near, self._slack, left_s, home).name
        known = self._candidates(self._for(model), model)
        up = [one for one in known if one.up]
        known = routing.roomy(up, fits) if up else [one for one in known if fits(one.name)]
        if first_s is not None:
            known = [one._replace(ttft_s=first_s(self._replicas[one.name])) for one in known]
        return routing.pick(known, NOBODY, near, self._slack, left_s, home)

    def named(self, name: str) -> Replica:
        """The replica of a name."""
        return self._replicas[name]

    def now_s(self) -> float:
        """The time, as what is known of replicas is dated."""
        return self._clock()

    def continues(self, name: str) -> Continues | None:
        """Which streams of others a replica can continue by replay; None: none, or that is not known now."""
        return self._replicas[name].continues(self._clock())

    def serving(self, model: str) -> list[Replica]:
        """All replicas of it, whether they are up or not."""
        return self._for(model)

    def up(self, model: str) -> list[Replica]:
        """The replicas that requests for it can go to now."""
        up = [one for one in self._for(model) if one.health.up]
        return [one for one in up if not one.drained] or up

    def second(self, model: str, avoid: frozenset[str], home: str | None = None) -> str | None:
        """Name the replica for a leg that races a silent one; None when there is no good one.

        It must be up, not drained, and without silent streams of its own: when all are slow, racing makes them slower.
        """
        name = self._lively(model, avoid, home)
        return None if name is None or self._replicas[name].drained else name

    def _lively(self, model: str, avoid: frozenset[str], home: str | None = None) -> str | None:
        lively = [one for one in self._for(model) if one.health.up and not one.pulse.silent and one.name not in avoid]
        return routing.pick(self._candidates(lively, model), home=home)

    def admit(self, name: str, model: str) -> Entry:
        """Send a request to a replica; however it ends, the entry must be ended."""
        replica = self._replicas[name]
        found = replica.breakers.get(model)
        return (replica.breaker(model, partial(self._breaker, replica, model)) if found is None else found).enter()

    def alone(self, model: str) -> bool:
        """Whether what one replica fails cannot be tried at another: no two are up, or all retries are used up.

        The latter is what many poison requests at once come to. They must not be held against the servers for it.
        """
        return sum(bool(one.health.up) for one in self._for(model)) < 2 or self._retries.used_up(self._clock())

    def may_hedge(self) -> bool:
        """Take one of the second legs that all requests together may open for now."""
        return self._hedges.take(self._clock())

    def asked(self) -> None:
        """A request is sent to the first server that it goes to."""
        self._retries.request(self._clock())

    def may_retry(self) -> bool:
        """Take one of the tries that all requests together have where servers answer with errors."""
        return self._retries.take(self._clock())

    def watch(
        self,
        name: str,
        request_bytes: int,
        on_silence: Callable[[], None],
        on_first: Callable[[], None] | None = None,
    ) -> Watch:
        """Keep an eye on a streaming leg there.

        on_silence: called when it is silent for longer than is usual. on_first: when its first tokens have come.
        """

        def silent() -> None:
            on_silence()
            self._once(f"examine {name}", partial(self._examine, name))

        return Watch(self._replicas[name].pulse, request_bytes, silent, on_first)

    def enter(self, name: str, tokens: int = 0) -> None:
        """A leg begins on this replica, and will likely take so many tokens."""
        replica = self._replicas[name]
        replica.load += 1
        replica.tokens += tokens

    def leave(self, name: str, tokens: int = 0) -> None:
        """A leg on this replica has ended. tokens: as it entered with."""
        replica = self._replicas[name]
        replica.load -= 1
        replica.tokens -= tokens
        if not replica.load:
            replica.idle_s = self._clock()

    def not_ready(self) -> list[str]:
        """Say what keeps the gateway from serving; nothing when each model has a replica that is up."""
        if not self.models:
            return [self._state(replica) for replica in self._replicas.values()] or ["no replica is configured"]
        missing = [m for m in self.models if not any(r.health.up for r in self._for(m))]
        return [f"model {m}: " + ", ".join(map(self._state, self._for(m))) for m in missing]

    def all(self) -> list[Replica]:
        return list(self._replicas.values())

    async def run(self) -> None:
        """Probe every replica, for as long as the gateway lives; one that cannot be probed does not end the others."""
        while True:
            rounds = await asyncio.gather(*(self.probe(name) for name in self._replicas), return_exceptions=True)
            for name, fault in zip(self._replicas, rounds, strict=True):
                if isinstance(fault, Exception):
                    log.error("probe.fault", replica=name, exc_info=fault)
                elif fault is Probe.GOOD:
                    self._once(f"gauges {name}", partial(self._read_gauges, self._replicas[name]))
            self._compare()
            await asyncio.sleep(self._care.probe_every_s)

    def suspect(self, name: str) -> None:
        """A leg was lost there: look now, not at the next round."""
        self._once(f"look {name}", partial(self._look, name))

    async def probe(self, name: str) -> Probe:
        """Look at one replica once, and note what was seen."""
        replica = self._replicas[name]
        seen = verdict(await self._ask(name, "/health", None, self._care.probe_s))
        if seen is Probe.GOOD and (not replica.serves or not replica.health.up):
            seen = await self._models(replica)
        if seen is Probe.GOOD and replica.health.up is False:
            seen = await self._warm(replica)
        self._judge(replica, replica.health.after(seen))
        if seen is Probe.GOOD and self._quiet(replica):
            self._once(f"examine {name}", partial(self._examine, name))
        return seen

    def close(self) -> None:
        """Look no more."""
        for task in self._busy.values():
            task.cancel()

    # ---------------------------------------------------------------- a closer look

    async def _look(self, name: str) -> None:
        """Look until it is clear: a server that is dying resets connections before it refuses them."""
        for _ in range(LOOKS_MAX):
            if await self.probe(name) not in (Probe.ODD, Probe.SILENT):
                break
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _examine(self, name: str) -> None:
        """Find out whether a silent replica hangs; eject it on two independent signals, but never the last one."""
        replica = self._replicas[name]
        pulse = replica.pulse
        wait_s = max(self._care.canary_s, CANARY_GAPS * pulse.between.quantile_s(0.999))
        for _ in range(EXAMINATIONS_MAX):
            heard, streams, ended = pulse.tokens, pulse.streams, pulse.silences - pulse.silent
            found = await self._canary.look(name, replica.any_model, wait_s)
            silent = pulse.silences - ended  # also those that were outrun, and ended, meanwhile
            streams = max(streams, pulse.streams)
            evidence = replace(found, streams=streams, silent=silent, tokens=pulse.tokens != heard)
            log.info("replica.examined", replica=name, signals=evidence.signals, alive=evidence.alive)
            if evidence.alive or replica.health.gone:
                return
            if evidence.hung and await self._others(replica) and pulse.tokens == heard:
                return self._judge(replica, Health.ejected(evidence.signals))

    async def _warm(self, replica: Replica) -> Probe:
        """Have a replica that comes back compute one token in time, before anybody depends on it."""
        answered = await self._canary.sing(replica.name, replica.any_model, self._care.canary_s)
        return Probe.COLD if answered is False else Probe.GOOD

    def _quiet(self, replica: Replica) -> bool:
        """Whether requests are there and nothing shows that they are computed: plain answers bring no tokens."""
        waits = replica.load > replica.pulse.streams and replica.pulse.tokens == replica.tokens_seen
        replica.tokens_seen = replica.pulse.tokens
        replica.quiet = (replica.quiet + 1) % QUIET_PROBES if waits else 0
        return waits and not replica.quiet

    async def _others(self, replica: Replica) -> bool:
        """Whether each of its models is served by another one that is up, and does not stall just as well."""
        for model in [replica.model] if replica.model else list(replica.serves):
            other = self._lively(model, frozenset((replica.name,)))  # a drained one is better than one that hangs
            if other is None or await self._canary.sing(other, model, self._care.canary_s) is False:
                return False
            if not self._replicas[other].health.up:  # any more
                return False
        return True

    def _judge(self, replica: Replica, health: Health) -> None:
        before, replica.health = replica.health, health
        if (health.up, health.gone) == (before.up, before.gone):
            return
        now_s, plan = self._clock(), self._care.flaps
        if health.up != before.up:
            replica.since_s = now_s
            replica.trust = replica.trust.up(now_s, plan) if health.up else replica.trust.down(now_s, plan)
        self._listener.changed(replica)

    # ---------------------------------------------------------------- beside each other

    async def _read_gauges(self, replica: Replica) -> None:
        """Have a replica say how it is; one that does not say says nothing against itself."""
        answer = await self._ask(replica.name, "/metrics", None, self._care.probe_s)
        if answer.status == 200 and (gauges := read(answer.body, self._clock())) is not None:
            replica.gauges = gauges
            self._listener.gauged(replica)

    def _compare(self) -> None:
        """Compare those of each model that are up, once a round."""
        now_s, fresh_s = self._clock(), max(FRESH_S, 3 * self._care.probe_every_s)
        for replica in self._replicas.values():
            if replica.gauges is not None and (now_s - replica.gauges.at_s > fresh_s or not replica.health.up):
                replica.gauges = None
            replica.course.note(now_s, replica.pulse.gaps, replica.pulse.gaps_s, replica.gauges)
        known = {one.name: one.course.vitals(one.gauges) for one in self._replicas.values() if one.health.up}
        for replica in self._replicas.values():
            model = replica.any_model
            peers = self._for(model) if model is not None else []
            others = [known[one.name] for one in peers[: PEERS_MAX + 1] if one is not replica and one.name in known]
            own = known.get(replica.name, Vitals())
            before = told = replica.beside
            if all(getattr(own, vital) is not None for vital in before.vitals):
                replica.beside_s = now_s
            elif now_s - replica.beside_s > BESIDE_S:
                before = ALIKE
            replica.beside = compared(own, others, before)
            replica.weight = replica.share * replica.beside.weight
            if replica.beside.vitals != told.vitals:
                self._listener.compared(replica)

    def _breaker(self, replica: Replica, model: str) -> Breaker:
        plan, listener = self._care.breakers, self._listener
        return Breaker(plan, self._clock, lambda turned: listener.turned(replica, model, turned))

    def _good(self, model: str) -> list[Replica]:
        now_s = self._clock()
        return [one for one in self._for(model) if one.good(model, now_s)]

    def _candidates(self, replicas: list[Replica], model: str) -> list[Candidate]:
        now_s = self._clock()
        return [replica.candidate(model, now_s) for replica in replicas]

    def _once(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do something in the background, unless it is being done."""
        if what not in self._busy:
            task = asyncio.ensure_future(work())
            self._busy[what] = task
            task.add_done_callback(lambda done: self._did(what, done))

    def _did(self, what: str, task: "asyncio.Future[None]") -> None:
        del self._busy[what]
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("probe.fault", what=what, exc_info=fault)

    async def _models(self, replica: Replica) -> Probe:
        answer = await self._ask(replica.name, "/v1/models", None, self._care.probe_s)
        if answer.status != 200:
            return verdict(answer)
        if (serves := cards(answer.body)) is None:
            return Probe.WRONG
        replica.told(serves)
        self._serving.clear()
        return Probe.GOOD if replica.model is None or replica.model in replica.serves else Probe.WRONG

    def _for(self, model: str) -> list[Replica]:
        if (known := self._serving.get(model)) is not None:  # asked several times for each request
            return known
        all_of = self._replicas.values()
        found = [r for r in all_of if (r.model or model) == model and (r.model or model in r.serves)]
        if found:  # a model that nobody serves is a client's word, and would fill the memory
            self._serving[model] = found
        return found

    @staticmethod
    def _state(replica: Replica) -> str:
        return f"{replica.name} {replica.health.why}"
