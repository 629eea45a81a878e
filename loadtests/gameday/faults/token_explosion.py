"""Agents that generate without end, and prompts that grow without end: limits cut them to the token."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from gateway.books.ledger.tables import Balance
from loadtests.answers import Answer
from loadtests.gameday.ground import charged, chat, cost
from loadtests.gameday.scenario import Observations, Probe, Scenario, trials
from loadtests.gateway_process import Gateway, until

AGENTS = 6
BUDGET = 900  # tokens that all of them share, prompts and answers
EACH_TURN = 200  # output tokens of one request, at most
ENDLESS = 3_500  # tokens: nearly the model's window
EXPLODED = 40_000  # words of a prompt: ten times the window
MODEST = 30
END_S_MAX = 60.0
CUTS = ("budget_exceeded",)
SPENT = 402
LATE_MAX = 5  # further requests, until nothing is left
REFUSED = (400, 402, 413, 429)
# Parts of holdfast.yaml: without them nothing but the model's window ends an answer.
GUARDS: dict[str, Any] = {
    "budgets": [{"org": "swarm", "limits": [f"{BUDGET}/day"], "each_turn": [f"{EACH_TURN} output tokens"]}]
}


class TokenExplosion(Scenario):
    """A swarm under one small budget, each of them asked to speak for as long as the window is."""

    name = "token-explosion"
    title = "agents that generate without end"
    hypothesis = (
        "budgets and limits of a turn cut endless answers to the token, a prompt beyond the window is refused "
        "before a server is asked, and another key's requests are answered in full"
    )
    weight = 8
    why = "one loop in one agent is enough, and it needs no ill will"
    limit_s = 300.0

    def steady(self) -> Observations:
        """A modest request of the same org, and one of another."""
        self.gateway = self.ground.gateway(standby=False, **GUARDS)
        self.swarm = self.gateway.key("swarm", org="swarm")
        self.other = self.gateway.key("modest", org="other")
        self.first = self._modest(self.swarm)
        answers = [*self.first, *self._modest(self.other)]
        return {
            "whole": [one.done and one.tokens == MODEST for one in answers],
            "charged": charged(self.gateway, answers),
        }

    def inject(self) -> Observations:
        """All agents at once, and beside them what should not reach a server at all."""
        clients, url = self.ground.clients, self.gateway.url
        bodies = [
            chat(f"Agent {n}: say all you know.", max_tokens=ENDLESS, ignore_eos=True, seed=n) for n in range(AGENTS)
        ]
        self.streams = clients.begin(url, bodies, self.swarm, seconds=END_S_MAX)
        words = " ".join(self.ground.rng.choices(("tide", "harbour", "weather", "week"), k=EXPLODED))
        self.exploded = clients.begin(url, [chat(words, max_tokens=MODEST)], self.other, seconds=END_S_MAX)
        self.modest = clients.begin(url, [_modest(n) for n in range(2)], self.other, seconds=END_S_MAX)
        return {"agents": AGENTS, "asked_for": ENDLESS, "budget": BUDGET, "each_turn": EACH_TURN}

    def observe(self) -> Observations:
        """Their ends, what was charged, and what reached a server."""
        got, modest = self.streams.wait(), self.modest.wait()
        refused = self.exploded.wait()
        late: list[Answer] = []
        while len(late) < LATE_MAX and not (late and late[-1].status == SPENT):  # who comes alone gets what is left
            late += self._modest(self.swarm, BUDGET)
        balance = self._settled()
        return {
            "ends": [_end(one) for one in got], "answers": [one.tokens for one in got],
            "charged": charged(self.gateway, [one for one in got if one.status == 200]),
            "delivered": sum(map(cost, [*self.first, *got, *late])), "spent": getattr(balance, "spent", None),
            "held": getattr(balance, "held", None), "late": late[-1].status,
            "refused": [one.status for one in refused], "asked": [_legs(self.gateway, one) for one in refused],
            "modest": [one.done and one.tokens == MODEST for one in modest], "faults": self.gateway.faults(),
        }  # fmt: skip

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [
            trials("a modest answer is whole", seen["whole"]),
            trials("it is charged exactly once", seen["charged"]),
        ]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        spent, budget = seen["spent"], injected["budget"]
        cut = [end in (*CUTS, "refused") for end in seen["ends"]]
        return [
            trials("an endless answer is cut, or refused, by name", cut, seen["ends"]),
            trials("no answer is longer than a turn may be", [n <= injected["each_turn"] for n in seen["answers"]]),
            trials("what came is charged exactly", seen["charged"]),
            Probe("the budget is not overspent by a token", int(spent is not None and spent <= budget), 1, str(spent)),
            Probe("nothing of it is held after", int(seen["held"] == 0), 1, str(seen["held"])),
            Probe("with nothing left a request is refused by name", int(seen["late"] == SPENT), 1, str(seen["late"])),
            Probe(
                "what is charged is what was delivered",
                int(spent == seen["delivered"]),
                1,
                f"{spent} for {seen['delivered']}",
            ),
            trials("what cannot be is refused", [status in REFUSED for status in seen["refused"]], seen["refused"]),
            trials("no server is asked for it", [legs == 0 for legs in seen["asked"]]),
            trials("another key's answer is whole", seen["modest"]),
            Probe("nothing in the gateway's log that should not be there", int(not seen["faults"]), 1),
        ]

    def _settled(self) -> Balance | None:
        """The swarm's account once nothing of it is held, or as it is after a while."""

        def look() -> Balance | None:
            return next((one for one in self.gateway.balances() if one.scope == "org:swarm"), None)

        with suppress(AssertionError):
            until(lambda: (one := look()) is None or one.held == 0)
        return look()

    def _modest(self, key: str, tokens: int = MODEST) -> list[Answer]:
        body = _modest(0) | {"max_tokens": tokens}
        return self.ground.clients.ask(self.gateway.url, [body], key, seconds=END_S_MAX)


def _modest(number: int) -> dict[str, Any]:
    return chat(f"A short answer, number {number}, please.", max_tokens=MODEST, ignore_eos=True)


def _end(answer: Answer) -> str:
    """How it ended, in a word."""
    if answer.status in REFUSED:
        return "refused"
    if answer.error is not None:
        return str(answer.error.get("code"))
    return str((answer.stop_reason or [None])[0] or (answer.finish or [None])[0])


def _legs(gateway: Gateway, answer: Answer) -> int:
    """How many servers were asked for it, by the journal."""
    facts = [one for one in gateway.journal() if one.get("request_id") == answer.request_id]
    return sum(one["kind"] == "leg.opened" for one in facts)
