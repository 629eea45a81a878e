"""kill -9 of the vLLM server that serves, in the middle of its streams."""

import signal
from collections.abc import Sequence

from loadtests.gameday.ground import charged, chat, cost, equal
from loadtests.gameday.scenario import Observations, Probe, Scenario, trials
from loadtests.gateway_process import until

STREAMS = 8
TOKENS = 120  # of each stream
BEGUN_S_MAX = 60.0


class EngineKill(Scenario):
    """All of the server's processes at once, when a seeded share of the answers has come."""

    name = "engine-kill"
    title = "kill -9 of a serving vLLM"
    hypothesis = "every stream goes on from the other server, token for token, and is charged exactly once"
    weight = 10
    why = "GPUs and processes die every day in a fleet, and a stream that is cut cannot be asked for again unnoticed"
    limit_s = 180.0

    def steady(self) -> Observations:
        """The answers as they should be, of the server that stands by; then the same through the gateway."""
        ground = self.ground
        self.bodies = [
            chat(f"Tell me {n} things.", max_tokens=TOKENS, ignore_eos=True, repetition_penalty=1.1 + n / 20)
            for n in range(STREAMS)
        ]
        self.wanted = ground.clients.ask(ground.fleet.urls[1], self.bodies)
        self.gateway = ground.gateway()
        self.key = self.gateway.key("gameday", 1_000_000)
        before = ground.clients.ask(self.gateway.url, self.bodies[:2], self.key)
        return {
            "whole": [answer.done and answer.error is None for answer in self.wanted],
            "equal": equal(self.wanted[:2], before),
            "charged_once": charged(self.gateway, before),
        }

    def inject(self) -> Observations:
        """Begin the streams, and kill who serves them."""
        ground = self.ground
        self.streams = ground.clients.begin(self.gateway.url, self.bodies, self.key)
        after = ground.rng.randrange(STREAMS * TOKENS // 16, STREAMS * TOKENS // 4)
        until(lambda: self.streams.tokens >= after or self.streams.done, BEGUN_S_MAX, f"{after} tokens")
        victim = ground.fleet.at(self.streams.answers[0].replica)
        came = self.streams.tokens
        victim.kill(signal.SIGKILL)
        return {"killed": victim.address, "tokens_before": came, "streams": STREAMS}

    def observe(self) -> Observations:
        """The streams to their ends."""
        got = self.streams.wait()
        return {
            "equal": equal(self.wanted, got),
            "errors": [str((answer.error or {}).get("code", "")) for answer in got],
            "failed_over": sum(answer.said is not None for answer in got),
            "charged_once": charged(self.gateway, got),
            "pause_s_max": max((gap for answer in got for gap in answer.gaps_s), default=0.0),
            "tokens": sum(map(cost, got)),
        }

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [
            trials("an answer without the gateway is whole", seen["whole"]),
            trials("a stream through the gateway is equal", seen["equal"]),
            trials("a stream is charged exactly once", seen["charged_once"]),
        ]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        return [
            trials("a stream equals its uninterrupted run", seen["equal"], seen["errors"]),
            trials("a stream is charged exactly once", seen["charged_once"]),
            # Else the fault fell beside the streams, and what they are equal to says nothing.
            Probe("the kill cut streams", int(seen["failed_over"] > 0), 1),
        ]
