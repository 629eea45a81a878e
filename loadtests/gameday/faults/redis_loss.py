"""The Redis that two gateways share their budgets in is killed, and comes back from its file."""

import asyncio
import time
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from gateway.books.vault.redis import RedisVault
from gateway.books.vault.redis_server import Login
from loadtests.answers import Answer
from loadtests.gameday.faults.cut import BEGUN_S_MAX
from loadtests.gameday.ground import booked, charged, chat, cost, equal
from loadtests.gameday.redis import Redis, redis_server
from loadtests.gameday.scenario import Observations, Probe, Scenario, clean, trials, unless_missed
from loadtests.gateway_process import until

GATEWAYS = 2
STREAMS, TOKENS = 8, 120  # all together, by turns at the gateways
BUDGET_TOKENS = 16_000  # of the org: each stream may hold some 1,500 until it is known how long its prompt is
LAST_TOKENS, LONG_WORDS, LONGS_MAX = 6_000, 300, 40  # the rest goes in streams, what is before it in long prompts
NEW = 8  # requests while Redis is away
NOTICED_S_MAX, BACK_S_MAX = 20.0, 40.0
ROUNDS_MAX = 12  # of the same streams, until nothing is left
ORG = "org:gameday"
UNAVAILABLE = "books_unavailable"
ON_ITS_WAY = 1  # tokens of a running stream that may have left its gateway when Redis is killed, and come after


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
        self.given = 0  # tokens that both have delivered so far, in answers that ended
        before = [self._ask(number, self.bodies[:1])[0] for number in range(GATEWAYS)]
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
        asked = chat("Is it there?", max_tokens=4) | {"stream": False}
        until(lambda: self._all_say(503, asked), NOTICED_S_MAX, "both gateways to refuse")
        refused = [a for number in range(GATEWAYS) for a in self._ask(number, [asked] * (NEW // 2))]
        got = [one.wait() for one in self.streams]
        self.given += sum(cost(answer) for one in got for answer in one)
        came = self._tokens()
        self.redis.start()
        until(lambda: self._all_say(200, asked), BACK_S_MAX, "both gateways to serve")
        wanted = [answer for number in range(GATEWAYS) for answer in self.wanted[number::GATEWAYS]]
        looks, spent_up, said, after = [(self._spent(), self.given)], False, list[str](), [False] * STREAMS
        for number in range(LONGS_MAX):
            if self._spent() > BUDGET_TOKENS - LAST_TOKENS:
                break
            self._ask(number % GATEWAYS, [chat(f"{number} " + "tide " * LONG_WORDS, max_tokens=4)])
            looks.append((self._spent(), self.given))
        rounds, well_s = 0, time.monotonic() + BACK_S_MAX
        while rounds < ROUNDS_MAX:
            more = [a for number in range(GATEWAYS) for a in self._ask(number, self.bodies[number::GATEWAYS])]
            looks.append((self._spent(), self.given))
            said += [code(answer) for answer in more]
            # Each gateway has leased a part: who finds no more than others hold is told to come again, and does.
            after = [had or has for had, has in zip(after, equal(wanted, more), strict=True)]
            # What is small is paid from what is leased still; rights for all of these come with the next exchanges.
            if UNAVAILABLE in map(code, more) and time.monotonic() < well_s:
                continue
            rounds += 1
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
            "tokens_at_their_ends": came,
            "looks": looks,
            "ledger_is_journal": [booked(one, self.key) for one in self.gateways],
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
        running = injected["running"]
        missed = "" if running else "no stream was running when Redis was killed"
        named = [said == [503, "books_unavailable"] for said in seen["refused"]]
        budget, on = seen["budget"], seen["tokens_at_their_ends"] - injected["tokens_before"]
        spent = [one for one, _ in seen["looks"]]
        enough = [one >= least for one, least in seen["looks"]]
        return unless_missed(missed, [
            Probe("running streams go on while the lease lasts", int(running and on > ON_ITS_WAY * running),
                  int(running > 0), f"{on} tokens of {running} streams"),
            trials("a running stream is whole, or a part that ends by name (books_unavailable)",
                   seen["whole_or_named"], seen["errors"]),
            trials("it is charged exactly once, for what came", seen["charged_once"]),
            trials("a new request is refused by name (503, books_unavailable)", named, seen["refused"]),
            trials("a stream after it equals its uninterrupted run", seen["equal_after"]),
            # Asked again and again until nothing is left: each look is a chance to see more than there was.
            trials("both gateways together have charged no more than the budget",
                   [one <= budget for one in spent], [f"{one} of {budget}" for one in spent]),
            trials("and no less than they have delivered", enough,
                   [f"{one} for {least}" for one, least in seen["looks"]]),
            trials("each ledger has charged what its journal says", seen["ledger_is_journal"]),
            Probe("in the end nothing is left, and a request is told so (402)", int(seen["spent_up"]), 1,
                  ", ".join(filter(None, seen["said"]))),
            clean(seen["log_faults"]),
        ])  # fmt: skip

    def _ask(self, number: int, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
        """One of the gateways, which has delivered what comes of it."""
        answers = self.ground.clients.ask(self.gateways[number].url, bodies, self.key)
        self.given += sum(cost(answer) for answer in answers)
        return answers

    def _all_say(self, status: int, body: dict[str, Any]) -> bool:
        return all(self._ask(number, [body])[0].status == status for number in range(GATEWAYS))

    def _tokens(self) -> int:
        """What came of the running streams so far."""
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
