"""kill -9 of the gateway in the middle of its streams: what its books say once it is started again."""

import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from loadtests.answers import Answer
from loadtests.gameday.ground import charged, chat, equal
from loadtests.gameday.scenario import Observations, Probe, Scenario, clean, trials, unless_missed
from loadtests.gateway_process import Gateway, NotSeen, until

STREAMS = 8
TOKENS = 120
BUDGET_TOKENS = 200  # of each key: an answer and a part of the next one
BEGUN_S_MAX = 60.0


class GatewayKill(Scenario):
    """Each stream on a key of its own whose budget does not pay for two answers."""

    name = "gateway-kill"
    title = "kill -9 of the gateway"
    hypothesis = (
        "nobody is charged less than was received, nor more than the budget; nothing stays held, the journal has no "
        "hole, and the next start serves as before"
    )  # fmt: skip
    weight = 8
    why = "its streams are lost with it, as promised; what was spent must not be"
    limit_s = 300.0

    def steady(self) -> Observations:
        """Answers directly, and through the gateway by a key that is not short of anything."""
        ground = self.ground
        self.bodies = [
            chat(f"Count to {n}.", max_tokens=TOKENS, ignore_eos=True, repetition_penalty=1.1 + n / 20)
            for n in range(STREAMS)
        ]
        self.wanted = ground.clients.ask(ground.fleet.urls[1], self.bodies)
        self.gateway: Gateway = ground.gateway()
        self.rich = self.gateway.key("rich", 1_000_000)
        before = ground.clients.ask(self.gateway.url, self.bodies[:2], self.rich)
        return {"equal": equal(self.wanted[:2], before), "charged_once": charged(self.gateway, before)}

    def inject(self) -> Observations:
        """Begin a stream for each of the keys, and kill."""
        ground = self.ground
        self.keys = [self.gateway.key(f"user-{n}", BUDGET_TOKENS) for n in range(STREAMS)]
        begun = [
            ground.clients.begin(self.gateway.url, [body], key)
            for body, key in zip(self.bodies, self.keys, strict=True)
        ]  # fmt: skip
        after = ground.rng.randrange(STREAMS * TOKENS // 16, STREAMS * TOKENS // 2)
        until(lambda: sum(one.tokens for one in begun) >= after or all(one.done for one in begun), BEGUN_S_MAX,
              f"{after} tokens")  # fmt: skip
        self.gateway.process.send_signal(signal.SIGKILL)
        self.ground.damaged = True
        self.gateway.process.wait(BEGUN_S_MAX)
        self.cut = [one.wait()[0] for one in begun]
        return {
            "tokens_before": sum(answer.tokens for answer in self.cut),
            "cut": sum(answer.tokens > 0 and not answer.done for answer in self.cut),
        }

    def observe(self) -> Observations:
        """Start it again, look at its books; ask once more for all, and for more than the budgets have."""
        ground, gateway = self.ground, self.gateway
        gateway.restart()
        spent = [gateway.balance(key) for key in self.keys]
        again = ground.clients.ask(gateway.url, self.bodies, self.rich)
        more = [ground.clients.ask(gateway.url, [body], key)[0]
                for body, key in zip(self.bodies, self.keys, strict=True)]  # fmt: skip
        with suppress(NotSeen):  # then the judge is told what is held still
            until(lambda: all(gateway.balance(key).held == 0 for key in self.keys))
        final = [gateway.balance(key) for key in self.keys]
        numbers = [fact["seq"] for fact in gateway.journal()]
        return {
            "received": [received(answer) for answer in self.cut],
            "spent": [one.spent for one in spent],
            "held": [one.held for one in spent],
            "budget": BUDGET_TOKENS,
            "equal": equal(self.wanted, again),
            "charged_once": charged(gateway, again),
            "received_in_all": [received(one) + received(two) for one, two in zip(self.cut, more, strict=True)],
            "spent_in_all": [one.spent for one in final],
            "errors": [str((answer.error or {}).get("code", "")) for answer in more],
            "facts": len(numbers),
            "facts_in_order": sum(number == place for place, number in enumerate(numbers, 1)),
            "log_faults": gateway.faults(),
        }

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [
            trials("a stream through the gateway is equal", seen["equal"]),
            trials("a stream is charged exactly once", seen["charged_once"]),
        ]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        missed = "" if injected["cut"] else "no stream was running when the gateway was killed"
        budget: int = seen["budget"]
        return unless_missed(missed, [
            within("a key is charged what its client received at least, its budget at most", seen["received"],
                   seen["spent"], budget),
            trials("nothing of a key stays held", [held == 0 for held in seen["held"]], seen["held"]),
            within("so it is once more was asked for than there is", seen["received_in_all"],
                   seen["spent_in_all"], budget),
            trials("a stream after the restart equals its uninterrupted run", seen["equal"]),
            trials("a stream after the restart is charged exactly once", seen["charged_once"]),
            Probe("a fact of the journal follows the one before it", seen["facts_in_order"], seen["facts"]),
            clean(seen["log_faults"]),
        ])  # fmt: skip


def received(answer: Answer) -> int:
    """Tokens that reached a client, the prompt among them where an answer came with it."""
    return len(answer.prompt_ids) + answer.tokens


def within(name: str, least: Sequence[int], spent: Sequence[int], budget: int) -> Probe:
    """A probe of charges, which may be neither too little nor too much."""
    held = [low <= one <= budget for low, one in zip(least, spent, strict=True)]
    said: list[Any] = [f"{one} charged, {low} received" for low, one in zip(least, spent, strict=True)]
    return trials(name, held, said)
