"""What all faults share that take a server from under its streams: the streams, what they should be, and the judges."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from gateway.local.engine import Engine
from loadtests.gameday.ground import booked, charged, chat, equal
from loadtests.gameday.scenario import Observations, Probe, Scenario, clean, trials, unless_missed
from loadtests.gateway_process import Gateway, NotSeen, until

BEGUN_S_MAX = 60.0
READMITTED_S_MAX = 60.0
SERVED_TRIES = 10  # further requests, one after the other, until the healed server answers one: others may be as free


class Cut(Scenario):
    """At a seeded moment of eight streams the server that serves them is broken. Subclasses say how."""

    hypothesis = "every stream goes on from the other server, token for token, and is charged exactly once"
    streams_at_once: ClassVar[int] = 8
    tokens: ClassVar[int] = 120  # of each stream

    @abstractmethod
    def hurt(self, victim: Engine) -> str:
        """Break the server, now. Says what was done."""

    def in_front(self) -> Gateway:
        """The gateway."""
        return self.ground.gateway()

    def served_by(self, address: str | None) -> Engine:
        """The server that the gateway calls so."""
        return self.ground.fleet.at(address)

    def steady(self) -> Observations:
        """The answers as they should be, of the server that stands by; then some of them through the gateway."""
        ground = self.ground
        self.bodies = [
            chat(f"Tell me {n} things.", max_tokens=self.tokens, ignore_eos=True, repetition_penalty=1.1 + n / 20)
            for n in range(self.streams_at_once)
        ]
        self.wanted = ground.clients.ask(ground.fleet.urls[1], self.bodies)
        self.gateway = self.in_front()
        self.key = self.gateway.key("gameday", 1_000_000)
        before = ground.clients.ask(self.gateway.url, self.bodies[:2], self.key)
        return {
            "whole": [answer.done and answer.error is None for answer in self.wanted],
            "equal": equal(self.wanted[:2], before),
            "errors": [str((answer.error or {}).get("code", "")) for answer in before],
            "charged_once": charged(self.gateway, before),
        }

    def inject(self) -> Observations:
        """Begin the streams, and break who serves them."""
        ground = self.ground
        self.streams = ground.clients.begin(self.gateway.url, self.bodies, self.key)
        of_all = self.streams_at_once * self.tokens
        after = ground.rng.randrange(of_all // 16, of_all // 4)
        until(lambda: self.streams.tokens >= after or self.streams.done, BEGUN_S_MAX, f"{after} tokens")
        self.replica = next((one.replica for one in self.streams.answers if one.replica), None)
        victim = self.served_by(self.replica)
        came = self.streams.tokens
        return {"done": self.hurt(victim), "to": victim.address, "tokens_before": came, "streams": len(self.bodies)}

    def observe(self) -> Observations:
        """The streams to their ends."""
        got = self.streams.wait()
        return {
            "equal": equal(self.wanted, got),
            "errors": [str((answer.error or {}).get("code", "")) for answer in got],
            "failed_over": sum(answer.said is not None for answer in got),
            "charged_once": charged(self.gateway, got),
            "ledger_is_journal": booked(self.gateway, self.key),
            "pause_s_max": max((gap for answer in got for gap in answer.gaps_s), default=0.0),
            "log_faults": self.gateway.faults(),
        }

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [
            trials("an answer without the gateway is whole", seen["whole"]),
            trials("a stream through the gateway is equal", seen["equal"], seen["errors"]),
            trials("a stream is charged exactly once", seen["charged_once"]),
        ]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        return unless_missed(_missed(seen), _survived(seen))


class Healed(Cut):
    """A fault that can be healed: the server is in use again after it."""

    @abstractmethod
    def heal(self) -> None:
        """Undo the fault. May be called again."""

    def observe(self) -> Observations:
        """The streams to their ends; then the server is healed, and used again."""
        seen = super().observe()
        self.heal()
        try:
            until(lambda: all_up(self.gateway), READMITTED_S_MAX, "the server to be used again")
        except NotSeen:
            return {**seen, "equal_after": [False] * len(self.bodies), "served_after": [], "victim": self.replica}
        after = self.ground.clients.ask(self.gateway.url, self.bodies, self.key)
        served = [answer.replica for answer in after]
        body = chat("Are you there?", max_tokens=4)
        for _ in range(SERVED_TRIES):
            if self.replica in served:
                break
            served.append(self.ground.clients.ask(self.gateway.url, [body], self.key)[0].replica)
        return {
            **seen,
            "equal_after": equal(self.wanted, after),
            "served_after": served,
            "victim": self.replica,
            "ledger_is_journal": booked(self.gateway, self.key),
            "log_faults": self.gateway.faults(),
        }

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        by = sorted({str(name) for name in seen["served_after"]})
        return unless_missed(_missed(seen), [
            *_survived(seen),
            Probe(
                "once it is healed it serves again", int(seen["victim"] in seen["served_after"]), 1,
                f"answers by {', '.join(by) or 'nobody'}",
            ),
            trials("a stream after that equals its uninterrupted run", seen["equal_after"]),
        ])  # fmt: skip


def _missed(seen: Observations) -> str:
    """Why the fault cut nothing; empty where it did."""
    hit = seen["failed_over"] or not all(seen["equal"])
    return "" if hit else "no stream was cut: they had all ended, or none had begun at that server"


def _survived(seen: Observations) -> list[Probe]:
    return [
        trials("a stream equals its uninterrupted run", seen["equal"], seen["errors"]),
        trials("a stream is charged exactly once", seen["charged_once"]),
        Probe("the ledger has charged what the journal says", int(seen["ledger_is_journal"]), 1),
        clean(seen["log_faults"]),
    ]


def all_up(gateway: Gateway) -> bool:
    """Whether every server gets requests."""
    ups = [value for name, value in gateway.metrics().items() if name.startswith("holdfast_replica_up")]
    return bool(ups) and all(ups)
