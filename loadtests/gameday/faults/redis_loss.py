"""The Redis that two gateways share their budgets in is killed, and comes back from its file."""

import asyncio
from collections.abc import Sequence
from hashlib import sha256

from gateway.books.vault.redis import RedisVault
from gateway.books.vault.redis_server import Login
from loadtests.answers import Answer
from loadtests.gameday.faults.cut import BEGUN_S_MAX
from loadtests.gameday.ground import charged, chat, equal
from loadtests.gameday.redis import Redis, redis_server
from loadtests.gameday.scenario import Missed, Observations, Probe, Scenario, trials
from loadtests.gateway_process import until

GATEWAYS = 2
STREAMS, TOKENS = 8, 120  # all together, by turns at the gateways
BUDGET_TOKENS = 4_000  # of the org: beyond what is asked before and meanwhile it pays for a dozen more answers
NEW = 8  # requests while Redis is away
NOTICED_S_MAX, BACK_S_MAX = 20.0, 40.0
ROUNDS_MAX = 8  # of the same streams, until nothing is left
ORG = "org:gameday"


class RedisLoss(Scenario):
    """Nothing may be spent twice, whoever leased it when."""

    name = "redis-loss"
    title = "the Redis of shared budgets is killed"
    hypothesis = (
        "streams go on while their gateway's lease lasts, and else end by name, charged for what came; new requests "
        "are refused by name; once it is back all is well by itself, and both together never charge more than the "
        "budget"
    )  # fmt: skip
    weight = 7
    why = "one Redis stands behind all gateways, and a budget that is overspent while it is away is no budget"
    limit_s = 300.0

    def lacking(self) -> str:
        return (
            "" if redis_server() else "no redis-server or valkey-server is found (HOLDFAST_REDIS_SERVER may name one)"
        )

    def steady(self) -> Observations:
        """Two gateways on one org's budget, both of which serve."""
        ground = self.ground
        self.redis = Redis(ground.scratch / "redis")
        ground.cleanup.callback(self.redis.kill)
        self.redis.start()
        asyncio.run(begun(self.redis))
        self.key = "hf-" + ground.rng.randbytes(24).hex()
        declared = {"user": "gameday", "org": "gameday", "sha256": sha256(self.key.encode()).hexdigest()}
        self.gateways = [
            ground.gateway(
                ledger={"url": self.redis.url}, keys=[declared],
                budgets=[{"org": "gameday", "limits": [f"{BUDGET_TOKENS}"]}],
            )
            for _ in range(GATEWAYS)
        ]  # fmt: skip
        self.bodies = [
            chat(f"Say {n} words.", max_tokens=TOKENS, ignore_eos=True, repetition_penalty=1.1 + n / 20)
            for n in range(STREAMS)
        ]
        self.wanted = ground.clients.ask(ground.fleet.urls[1], self.bodies)
        before = [ground.clients.ask(one.url, self.bodies[:1], self.key)[0] for one in self.gateways]
        return {
            "equal": equal([self.wanted[0]] * GATEWAYS, before),
            "errors": [code(answer) for answer in before],
            "charged_once": [charged(one, [answer])[0] for one, answer in zip(self.gateways, before, strict=True)],
        }

    def inject(self) -> Observations:
        """Begin streams at both, and kill Redis."""
        ground = self.ground
        self.streams = [
            ground.clients.begin(one.url, self.bodies[number::GATEWAYS], self.key)
            for number, one in enumerate(self.gateways)
        ]
        after = ground.rng.randrange(STREAMS * TOKENS // 16, STREAMS * TOKENS // 4)
        until(lambda: self._tokens() >= after or all(one.done for one in self.streams), BEGUN_S_MAX, f"{after} tokens")
        running = sum(not answer.done for one in self.streams for answer in one.answers)
        self.redis.kill()
        return {"tokens_before": self._tokens(), "running": running}

    def observe(self) -> Observations:
        """While it is away; once it is back; and until the budget is spent."""
        ground = self.ground
        asked = chat("Is it there?", max_tokens=4) | {"stream": False}
        until(lambda: all(ground.clients.ask(one.url, [asked], self.key)[0].status == 503 for one in self.gateways),
              NOTICED_S_MAX, "both gateways to refuse")  # fmt: skip
        refused = [a for one in self.gateways for a in ground.clients.ask(one.url, [asked] * (NEW // 2), self.key)]
        got = [one.wait() for one in self.streams]
        self.redis.start()
        until(lambda: all(ground.clients.ask(one.url, [asked], self.key)[0].status == 200 for one in self.gateways),
              BACK_S_MAX, "both gateways to serve")  # fmt: skip
        wanted = [answer for number in range(GATEWAYS) for answer in self.wanted[number::GATEWAYS]]
        looks, spent_up, said, after = [self._spent()], False, list[str](), list[bool]()
        for _ in range(ROUNDS_MAX):
            more = [a for number, one in enumerate(self.gateways)
                    for a in ground.clients.ask(one.url, self.bodies[number::GATEWAYS], self.key)]  # fmt: skip
            looks.append(self._spent())
            said += [code(answer) for answer in more]
            after = after or equal(wanted, more)
            if spent_up := all(answer.status == 402 for answer in more):
                break
        flat = [answer for one in got for answer in one]
        return {
            "whole_or_named": [whole_or_named(want, have) for want, have in zip(wanted, flat, strict=True)],
            "equal": sum(equal(wanted, flat)),
            "errors": [code(answer) for answer in flat],
            "equal_after": after,
            "charged_once": [
                held for one, answers in zip(self.gateways, got, strict=True) for held in charged(one, answers)
            ],
            "refused": [[answer.status, code(answer)] for answer in refused],
            "looks": looks,
            "budget": BUDGET_TOKENS,
            "spent_up": spent_up,
            "said": sorted(set(said)),
            "log_faults": [fault for one in self.gateways for fault in one.faults()],
        }  # fmt: skip

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [
            trials("a stream through each gateway is equal", seen["equal"], seen["errors"]),
            trials("it is charged exactly once", seen["charged_once"]),
        ]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        if not injected["running"]:
            raise Missed("no stream was running when Redis was killed")
        named = [said == [503, "books_unavailable"] for said in seen["refused"]]
        budget = seen["budget"]
        return [
            trials("a running stream is whole, or a part that ends by name (books_unavailable)",
                   seen["whole_or_named"], seen["errors"]),
            trials("it is charged exactly once, for what came", seen["charged_once"]),
            trials("a new request is refused by name (503, books_unavailable)", named, seen["refused"]),
            trials("a stream after it equals its uninterrupted run", seen["equal_after"]),
            # Asked again and again until nothing is left: each look is a chance to see more than there was.
            trials("both gateways together have charged no more than the budget",
                   [one <= budget for one in seen["looks"]], [f"{one} of {budget}" for one in seen["looks"]]),
        ]  # fmt: skip

    def _tokens(self) -> int:
        return sum(one.tokens for one in self.streams)

    def _spent(self) -> int:
        """By both, of the org, once nothing is held."""
        for one in self.gateways:
            one.paid(self.key)
        return sum(balance.spent for one in self.gateways for balance in one.balances() if balance.scope == ORG)


def whole_or_named(wanted: Answer, got: Answer) -> bool:
    """Whether an answer is the uninterrupted one, or ends by name in the middle of it."""
    if got.content == wanted.content:
        return True
    parts = zip(wanted.ids, got.ids, strict=False)
    return code(got) == "books_unavailable" and all(whole[: len(part)] == part for whole, part in parts)


def code(answer: Answer) -> str:
    """What an answer's error is called; empty where there is none."""
    return str((answer.error or {}).get("code", ""))


async def begun(server: Redis) -> None:
    """What `holdfast ledger begin` does."""
    vault = RedisVault([server.address], Login())
    await vault.begin()
    await vault.close()
