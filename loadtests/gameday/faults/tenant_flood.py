"""One tenant sends many times what the servers can do; a modest one goes on asking now and then."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from loadtests.answers import Answer
from loadtests.gameday.ground import chat
from loadtests.gameday.scenario import Observations, Probe, Scenario, trials, unless_missed

FLOOD, MODEST = 36, 5  # requests of each: all at once, and one after the other
FLOOD_WORDS = 300  # of a prompt: computing it is what takes the servers' time
FLOOD_TOKENS, MODEST_TOKENS = 24, 8
SEATS = 2  # requests that a server has at once: few, so that the next seat is free soon; the rest waits in the gateway
WORDS = ("tide", "harbour", "weather", "week", "rope", "lamp", "gull", "stone")
END_S_MAX = 120.0
SHARE_MAX = 0.6  # of the flood's own middle wait, that the modest tenant's first token may take
AWAY_S = 0.5  # the modest tenant waits so long before it asks
GUARDS: dict[str, Any] = {"admission": {"on": True, "per_replica": SEATS, "wait_s": END_S_MAX}}


class TenantFlood(Scenario):
    """Both tenants have the same tier: who was served least goes first."""

    name = "tenant-flood"
    title = "one tenant floods"
    hypothesis = (
        "a modest tenant's requests have their first token well before the middle one of the flood's own (in 60 % of "
        "that time), and are answered in full; so is, in the end, every request of the flood"
    )
    weight = 7
    why = "tenants share servers, and one with a loop or a batch job should be its own neighbour only"
    limit_s = 300.0

    def steady(self) -> Observations:
        """The modest tenant alone."""
        # Prompts are unlike each other from their first word on, so that none is kept for another.
        self.gateway = self.ground.gateway(standby=False, routing={"prefixes": False}, **GUARDS)
        self.flood, self.modest = self.gateway.key("flood"), self.gateway.key("modest")
        answers = [self._modest(n) for n in range(2)]
        return {"whole": [one[0] for one in answers], "first_s": [one[1] for one in answers]}

    def inject(self) -> Observations:
        """The flood, all at once."""
        rng = self.ground.rng
        bodies = [
            chat(f"{n} " + " ".join(rng.choices(WORDS, k=FLOOD_WORDS)), max_tokens=FLOOD_TOKENS, ignore_eos=True)
            for n in range(FLOOD)
        ]
        self.began_at = time.time()
        self.streams = self.ground.clients.begin(self.gateway.url, bodies, self.flood, seconds=END_S_MAX)
        return {"requests": FLOOD, "words": FLOOD_WORDS, "seats": SEATS}

    def observe(self) -> Observations:
        """The modest tenant, one request after the other while the flood lasts; then the flood to its end."""
        modest, beside = [], []
        for number in range(MODEST):
            time.sleep(AWAY_S)
            beside.append(not self.streams.done)
            modest.append(self._modest(10 + number))
        flood = self.streams.wait()
        waits = [one.at[0][0] - self.began_at for one in flood if one.at]
        return {
            "whole": [one[0] for one in modest], "first_s": [one[1] for one in modest], "beside": beside,
            "flood_whole": [one.done and one.error is None for one in flood],
            "flood_errors": [str((one.error or {}).get("code", "")) for one in flood],
            "flood_first_s": statistics.median(waits) if waits else 0.0, "faults": self.gateway.faults(),
        }  # fmt: skip

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [trials("a modest request is answered in full", seen["whole"])]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        # A request that came when the flood was over says nothing of it.
        beside = [first_s for first_s, there in zip(seen["first_s"], seen["beside"], strict=True) if there]
        missed = "" if beside else "the flood was over before the modest tenant asked"
        limit_s = SHARE_MAX * seen["flood_first_s"]
        said = [f"{first_s:.1f} s, of the flood {seen['flood_first_s']:.1f}" for first_s in beside]
        return unless_missed(missed, [
            trials("a modest request has its first token long before the flood", [0 < one < limit_s for one in beside],
                   said),
            trials("a modest request is answered in full", seen["whole"]),
            trials("each request of the flood is answered in the end", seen["flood_whole"], seen["flood_errors"]),
            Probe("nothing in the gateway's log that should not be there", int(not seen["faults"]), 1),
        ])  # fmt: skip

    def _modest(self, number: int) -> tuple[bool, float]:
        """Whether a request of it is answered in full, and after how many seconds its first token came; 0 if never."""
        body = chat(f"Say something short, number {number}.", max_tokens=MODEST_TOKENS, ignore_eos=True)
        asked_at = time.time()
        (answer,) = self.ground.clients.ask(self.gateway.url, [body], self.modest, seconds=END_S_MAX)
        return _whole(answer), answer.at[0][0] - asked_at if answer.at else 0.0


def _whole(answer: Answer) -> bool:
    return answer.done and answer.error is None and answer.tokens == MODEST_TOKENS
