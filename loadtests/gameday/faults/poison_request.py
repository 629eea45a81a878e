"""Requests that fail at any server, beside good ones."""

import json
from collections.abc import Sequence
from typing import Any

from loadtests.answers import Answer
from loadtests.gameday.ground import charged, chat, equal
from loadtests.gameday.poison import mark
from loadtests.gameday.scenario import Observations, Probe, Scenario, trials, unless_missed

POISON, GOOD = 60, 12  # requests
AT_ONCE = 12  # poison requests
GOOD_TOKENS = 12
LEGS = 2  # attempts that a request may have, the first one included
END_S_MAX = 60.0
FAILED = 502
GUARDS: dict[str, Any] = {"limits": {"legs": LEGS}}  # with one attempt, who fails it first is to blame


class PoisonRequest(Scenario):
    """The failure is simulated, in front of vLLM: see poison.py. A request that ends engines is another matter."""

    name = "poison-request"
    title = "requests that any server fails"
    hypothesis = (
        "requests that every server answers with 500 (simulated, before vLLM's engine) are told 502 after two attempts "
        "at most and are charged nothing; no server's breaker opens, none is taken out, and good requests are answered "
        "all the while"
    )
    weight = 7
    why = "one client's bad request must not look like bad servers: else it takes them from everybody"
    limit_s = 300.0

    def steady(self) -> Observations:
        """Good requests alone."""
        self.gateway = self.ground.gateway(standby=False, **GUARDS)
        self.mallory, self.bob = self.gateway.key("mallory", 1_000_000), self.gateway.key("bob", 1_000_000)
        self.bodies = [
            chat(f"Say {n} words.", max_tokens=GOOD_TOKENS, ignore_eos=True) for n in range(GOOD)
        ]  # fmt: skip
        self.wanted = self.ground.clients.ask(self.gateway.url, self.bodies, self.bob, seconds=END_S_MAX)
        return {
            "whole": [one.done and one.tokens == GOOD_TOKENS for one in self.wanted],
            "charged": charged(self.gateway, self.wanted),
        }

    def inject(self) -> Observations:
        """Poison, so many at once, and good requests between them, one after the other."""
        clients, url, secret = self.ground.clients, self.gateway.url, self.ground.fleet.secret
        self.poisoned: list[Answer] = []
        self.good: list[Answer] = []
        self.ground.damaged = True
        for number in range(0, POISON, AT_ONCE):
            bodies = [chat(f"Poison {number + n}.", max_tokens=8) | mark(secret) for n in range(AT_ONCE)]
            streams = clients.begin(url, bodies, self.mallory, seconds=END_S_MAX)
            part = len(self.good), len(self.good) + GOOD * AT_ONCE // POISON
            self.good += clients.ask(url, self.bodies[slice(*part)], self.bob, seconds=END_S_MAX)
            self.poisoned += streams.wait()
        self.good += clients.ask(url, self.bodies[len(self.good) :], self.bob, seconds=END_S_MAX)
        return {"poison": POISON, "good": GOOD, "legs": LEGS}

    def observe(self) -> Observations:
        """What became of each, and what the gateway thinks of its servers now."""
        facts = self.gateway.journal()
        told = json.loads(self.gateway.get("/admin/replicas", self.gateway.admin_url)[1])["replicas"]
        turned = [one for one in facts if one["kind"] == "replica.breaker" and one.get("state") != "closed"]
        judged = [one for one in facts if one["kind"] == "replica.judged" and not one.get("up", True)]
        return {
            "status": [one.status for one in self.poisoned], "attempts": [_legs(facts, one) for one in self.poisoned],
            "cost": self.gateway.paid(self.mallory).spent, "breakers": [f"{one['replica']} {one['state']}"
                                                                        for one in turned],
            "down": [one["replica"] for one in judged], "states": [one["state"] for one in told],
            "equal": equal(self.wanted, self.good), "charged": charged(self.gateway, self.good),
            "faults": self.gateway.faults(),
        }  # fmt: skip

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [
            trials("a good request is answered in full", seen["whole"]),
            trials("it is charged exactly once", seen["charged"]),
        ]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        legs, attempts, breakers = injected["legs"], seen["attempts"], seen["breakers"]
        untold = "no poison request was tried at both servers, so that nobody knows whose fault it was"
        return unless_missed(untold if set(attempts) == {1} else "", [
            trials("a poison request is told that it failed", [one == FAILED for one in seen["status"]],
                   seen["status"]),
            trials(f"it has {legs} attempts at most", [1 <= one <= legs for one in attempts], attempts),
            Probe("it is charged nothing", int(seen["cost"] == 0), 1, f"{seen['cost']} tokens"),
            Probe("no server's breaker opens", int(not breakers), 1, ", ".join(sorted(set(breakers)))),
            trials("a server stays up", [state == "up" for state in seen["states"]], seen["states"]),
            Probe("and was never down", int(not seen["down"]), 1, ", ".join(seen["down"])),
            trials("a good request is answered, to the token", seen["equal"]),
            trials("it is charged exactly once", seen["charged"]),
            Probe("nothing in the gateway's log that should not be there", int(not seen["faults"]), 1),
        ])  # fmt: skip


def _legs(facts: Sequence[dict[str, Any]], answer: Answer) -> int:
    """How many servers were asked for it, by the journal."""
    return sum(one["kind"] == "leg.opened" and one.get("request_id") == answer.request_id for one in facts)
