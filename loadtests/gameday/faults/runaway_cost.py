"""One key burns its budget many times too fast, while another one streams at its leisure."""

import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from loadtests.answers import Answer
from loadtests.gameday.ground import charged, chat, cost, equal
from loadtests.gameday.scenario import Observations, Probe, Scenario, trials
from loadtests.gateway_process import id_of, until

STREAMS, BYSTANDERS = 8, 2
DAY = 20_000  # tokens: the breaker opens when a twentieth of them is burnt within a quarter of an hour
PLENTY = 2_000_000  # tokens that the other key has: its breaker is watched as well, and has no reason
ENDLESS = 3_500  # tokens of each runaway stream
LEISURE = 500  # tokens of each bystander's
CALM_TOKENS = 120  # of all bystanders together, before the runaway begins
FIRE_S_MAX, END_S_MAX = 60.0, 90.0
ENDED_S_MAX = 2.0  # after the breaker's turn, on two cores that also run both servers
BURNT_MAX = 0.1  # of the day's budget, when all is over
SLOWER_MAX, FELT_S_MAX = 4.0, 0.15  # a bystander's median gap beside the runaway: so many times as long, and a bit
STOPPED = "breaker_open"
GUARDS: dict[str, Any] = {"breaker": "on"}  # parts of holdfast.yaml


class RunawayCost(Scenario):
    """Streams that never end, of a key with a budget for the day."""

    name = "runaway-cost"
    title = "a key burns its budget too fast"
    hypothesis = (
        "the breaker opens after a twentieth of the day's budget, ends the key's streams by name within two seconds, "
        "each charged what came of it, refuses its next request, and another key's streams go on to the token"
    )
    weight = 8
    why = "a budget alone lets a runaway spend all that is left of it, and with it everybody's patience"
    limit_s = 300.0

    def steady(self) -> Observations:
        """The bystanders' answers without the runaway."""
        budgets = [{"org": org, "limits": [f"{tokens}/day"]} for org, tokens in (("runaway", DAY), ("other", PLENTY))]
        self.gateway = self.ground.gateway(standby=False, budgets=budgets, **GUARDS)
        self.runaway = self.gateway.key("mallory", org="runaway")
        self.other = self.gateway.key("bob", org="other")
        self.bodies = [
            chat(f"Tell me of {n} tides.", max_tokens=LEISURE, ignore_eos=True, repetition_penalty=1.1 + n / 10)
            for n in range(BYSTANDERS)
        ]
        self.wanted = self.ground.clients.ask(self.gateway.url, self.bodies, self.other, seconds=END_S_MAX)
        return {
            "whole": [one.done and one.tokens == LEISURE for one in self.wanted],
            "charged": charged(self.gateway, self.wanted), "turns": len(self._turns()),
        }  # fmt: skip

    def inject(self) -> Observations:
        """The bystanders first, and in their midst the runaway."""
        clients, url = self.ground.clients, self.gateway.url
        self.beside = clients.begin(url, self.bodies, self.other, seconds=END_S_MAX)
        until(lambda: self.beside.tokens >= CALM_TOKENS or self.beside.done, END_S_MAX, "the bystanders' tokens")
        self.began_at = time.time()
        endless = [chat(f"On and on, {n}.", max_tokens=ENDLESS, ignore_eos=True) for n in range(STREAMS)]
        self.streams = clients.begin(url, endless, self.runaway, seconds=FIRE_S_MAX)
        return {"streams": STREAMS, "asked_for": STREAMS * ENDLESS, "day": DAY}

    def observe(self) -> Observations:
        """Both to their ends, and what the journal says of the breaker."""
        got = self.streams.wait()
        ended_at = time.time()  # of the last one: its end comes after its last token
        (refused,) = self.ground.clients.ask(self.gateway.url, [chat("Once more.", max_tokens=8)], self.runaway)
        beside = self.beside.wait()
        turns = self._turns()
        opened = [one for one in turns if one["state"] == "open"]
        return {
            "ends": [_end(one) for one in got], "charged": charged(self.gateway, got),
            "burnt": sum(map(cost, got)) / DAY, "opened": [one["scope"] for one in opened],
            "key": f"key:{id_of(self.runaway)}",
            "ended_s": [max(0.0, ended_at - one["at"]) for one in opened[:1]],
            "refused": str((refused.error or {}).get("code")), "equal": equal(self.wanted, beside),
            "calm_s": _median([gap for one in beside for gap in _gaps(one, 0.0, self.began_at)]),
            "beside_s": _median([gap for one in beside for gap in _gaps(one, self.began_at, ended_at)]),
            "faults": self.gateway.faults(),
        }  # fmt: skip

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [
            trials("a stream at leisure is whole", seen["whole"]),
            trials("it is charged exactly once", seen["charged"]),
            Probe("no breaker turns for it", int(seen["turns"] == 0), 1),
        ]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        felt = f"median gap {seen['calm_s']:.3f} s before, {seen['beside_s']:.3f} s beside"
        late = seen["ended_s"]
        return [
            Probe("the runaway's breaker opens, and no other", int(seen["opened"] == [seen["key"]]), 1,
                  str(seen["opened"])),
            trials("a stream of the runaway ends by name", [end == STOPPED for end in seen["ends"]], seen["ends"]),
            trials("it is charged what came", seen["charged"]),
            Probe(f"all end within {ENDED_S_MAX:g} s of the turn", int(bool(late) and late[0] < ENDED_S_MAX), 1,
                  str(late)),
            Probe(f"less than {BURNT_MAX:.0%} of the day is burnt", int(seen["burnt"] < BURNT_MAX), 1,
                  f"{seen['burnt']:.1%}"),
            Probe("its next request is refused by name", int(seen["refused"] == STOPPED), 1, seen["refused"]),
            trials("another key's stream goes on to the token", seen["equal"]),
            Probe("its gaps stay near what they were",
                  int(0 < seen["beside_s"] < SLOWER_MAX * seen["calm_s"] + FELT_S_MAX), 1, felt),
            Probe("nothing in the gateway's log that should not be there", int(not seen["faults"]), 1),
        ]  # fmt: skip

    def _turns(self) -> list[dict[str, Any]]:
        return [one for one in self.gateway.journal() if one["kind"] == "breaker.turned"]


def _end(answer: Answer) -> str:
    """How it ended, in a word."""
    said = (answer.error or {}).get("code") or (answer.stop_reason or [None])[0] or (answer.finish or [None])[0]
    return str(said)


def _gaps(answer: Answer, since: float, until_at: float) -> list[float]:
    """Seconds between its tokens, in that time."""
    at = [when for when, _ in answer.at if since <= when <= until_at]
    return [later - sooner for sooner, later in pairwise(at)]


def _median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) if seconds else 0.0
