"""A runaway, and what it does to others: one key's hundred endless streams are ended, and nobody else notices."""

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from itertools import pairwise

import pytest

from guards.budget import Limit, Unit, Window
from loadtests.processes import start_stub
from tests.processes import ROOT, id_of, until
from tests.receiver import Receiver
from tests.scenarios.asking import (
    ask,
    chat,
    error,
    header,
    order,
    plain,
    prompt_tokens,
    request_id,
    stop_reasons,
)
from tests.scenarios.test_money import PRICE, make_key

STREAMS = 100
END_S_MAX = 1.0
TOKENS_PER_S = 20
BYSTANDING = 320
DAY = Limit(1_000_000, Window.DAY, Unit.MONEY)  # a dollar


class Bystander:
    """A stream of somebody else, and when each of its tokens came."""

    def __init__(self):
        self.at_s = []

    def seen(self, seen):
        while len(self.at_s) < len(seen.ids):
            self.at_s.append(time.monotonic())
        return False

    def gaps(self, since_s, until_s):
        return [b - a for a, b in pairwise(at for at in self.at_s if since_s <= at <= until_s)]


def gap_s(bystanders, since_s, until_s):
    """Of a hundred gaps, the fifth longest: a moment in which this machine does nothing is one gap of each stream."""
    gaps = sorted(gap for one in bystanders for gap in one.gaps(since_s, until_s))
    return gaps[int(len(gaps) * 0.95)]


@pytest.fixture
def mini():
    with start_stub(model="mini") as stub:
        yield stub


def turns(gateway):
    return [fact for fact in gateway.journal() if fact["kind"] == "breaker.turned"]


async def test_a_runaway_is_ended_within_a_second_and_others_go_on(start_gateway, house, capsys):
    """The breaker opens, the streams end with what they got charged, and the gaps of others are what they were."""
    gateway = start_gateway([house.active.url], prices=[PRICE], breaker="on")
    runaway = make_key(gateway, "mallory", "acme", "x", DAY)
    other = make_key(gateway, "bob", "other", "y", DAY)
    others = [Bystander() for _ in range(5)]
    slow = chat(order(tokens=BYSTANDING, tokens_per_s=TOKENS_PER_S))
    bystanding = [asyncio.create_task(ask(gateway, other, slow, until=one.seen)) for one in others]
    await asyncio.sleep(6.0)
    endless = chat(order(tokens=100_000, tokens_per_s=TOKENS_PER_S))
    command = [sys.executable, "-m", "tests.scenarios.runaway", str(gateway.port), runaway, str(STREAMS)]
    began_s = time.monotonic()
    running = await asyncio.create_subprocess_exec(*command, json.dumps(endless), cwd=ROOT, stdout=PIPE)

    answers = json.loads((await running.communicate())[0])
    ended_s = time.monotonic()
    (turned,) = turns(gateway)
    refused = await ask(gateway, runaway, endless)
    left = await asyncio.gather(*bystanding)

    facts = [gateway.settled(one["request_id"]) for one in answers]
    late = max(fact["at"] for fact in facts) - turned["at"]
    before, during = gap_s(others, began_s - 5.0, began_s), gap_s(others, began_s, ended_s)
    with capsys.disabled():
        print(f"\nended {late:.2f} s after the trip; p95 {before * 1e3:.1f} ms before, {during * 1e3:.1f} ms during")
    assert late < END_S_MAX
    assert (turned["scope"], turned["state"]) == (f"key:{id_of(runaway)}", "open")
    assert turned["requests_ended"] == len(answers) == STREAMS
    for seen, fact in zip(answers, facts, strict=True):
        assert (seen["status"], seen["done"], seen["stop"]) == (200, True, ["length", "breaker_open"])
        prompt, completion = seen["usage"]
        assert (fact["ending"], fact["cost"]) == ("breaker_open", 2 * prompt + 6 * completion)
        assert prompt == prompt_tokens(endless)
    assert sum(fact["cost"] for fact in facts) < DAY.amount * 0.08
    assert (refused.status, error(refused)["code"]) == (429, "breaker_open")
    assert (header(refused, "retry-after"), f"key:{id_of(runaway)}" in error(refused)["message"]) == ("60", True)
    assert [len(seen.ids) for seen in left] == [BYSTANDING] * len(others)
    assert during < 4 * before + 0.05  # two busy cores: the figure is what is printed
    assert b'holdfast_breakers{state="open"} 1.0' in gateway.get("/metrics", gateway.admin_url)[1]


async def test_a_breaker_tries_again_with_little_money_and_closes(start_gateway, house):
    """Half-open, all that is asked for at once is paid by one small pass; after a calm all is as before."""
    quick = {"day": {"open": "5x over 1m", "degrade": "2x over 5m"}}
    gateway = start_gateway([house.active.url], prices=[PRICE], breaker=quick)
    key = make_key(gateway, "mallory", "acme", "x", DAY)
    burning = [ask(gateway, key, chat(order(tokens=400))) for _ in range(20)]
    await asyncio.gather(*burning)
    await asyncio.to_thread(until, lambda: turns(gateway))
    assert (await ask(gateway, key, plain())).status == 429

    await asyncio.to_thread(until, lambda: len(turns(gateway)) > 1, 20.0)
    spent = gateway.paid(key).spent
    answers = await asyncio.gather(*(ask(gateway, key, chat(order(tokens=9_000))) for _ in range(5)))
    allowed = (DAY.amount - spent) // 100

    assert [fact["state"] for fact in turns(gateway)][:2] == ["open", "half-open"]
    assert allowed * 0.9 < gateway.paid(key).spent - spent <= allowed
    (served,) = [seen for seen in answers if seen.status == 200]
    assert (served.finish, stop_reasons(served)) == ("length", ["budget_exceeded"])
    assert {error(seen)["code"] for seen in answers if seen.status == 429} == {"breaker_open"}
    until(lambda: [fact["state"] for fact in turns(gateway)][2:3] == ["open"], 10.0)  # the pass was burnt at once


async def test_a_mild_fire_makes_answers_short_then_cheap(start_gateway, house, mini):
    """The client is told in a header, the journal in its facts, and a running stream is cut at its next top-up."""
    mild = {"day": {"open": "900x over 1m", "degrade": "2x over 1m"}, "answer_tokens": 100}
    prices = [PRICE, PRICE | {"model": "mini"}]
    gateway = start_gateway([house.active.url], prices=prices, breaker=mild, cheaper=("mini", mini.url))
    key = make_key(gateway, "alice", "acme", "x", DAY)
    long = asyncio.create_task(ask(gateway, key, chat(order(tokens=5_000, tokens_per_s=100))))
    await asyncio.gather(*(ask(gateway, key, chat(order(tokens=500))) for _ in range(20)))
    await asyncio.to_thread(until, lambda: turns(gateway))

    short = await ask(gateway, key, chat(order(tokens=500)))
    modest = await ask(gateway, key, chat(order(tokens=500), max_tokens=7))
    assert header(short, "x-holdfast-degraded") == "max_tokens=100"
    assert (len(short.ids), short.finish, stop_reasons(short)) == (100, "length", ["budget_exceeded"])
    assert (len(modest.ids), stop_reasons(modest)) == (7, [None])
    assert gateway.settled(request_id(short))["degraded"] == ["shorter"]
    ran = await long
    assert 100 < len(ran.ids) < 2_000
    assert stop_reasons(ran) == ["budget_exceeded"]

    await asyncio.gather(*(ask(gateway, key, chat(order(tokens=500))) for _ in range(20)))
    await asyncio.to_thread(until, lambda: len(turns(gateway)) > 1, 15.0)
    cheap = await ask(gateway, key, chat(order(tokens=50)))
    fact = gateway.settled(request_id(cheap))
    assert "model=mini" in (header(cheap, "x-holdfast-degraded") or "").split(", ")
    assert cheap.events[0]["model"] == "mini"
    assert (fact["model"], fact["asked_model"]) == ("mini", "stub")
    assert mini.stats()["recorded"][-1]["body"]["model"] == "mini"


async def test_each_alert_reaches_its_receiver_once(start_gateway, house, monkeypatch):
    """Signed, though the receiver fails twice, and though the gateway is started anew; nothing secret is logged."""
    async with Receiver(fails=2) as receiver:
        hook = {"url": receiver.url, "secret": "${HOOK_SECRET}", "allow_private": True}
        monkeypatch.setenv("HOOK_SECRET", receiver.secret)
        alerts = {"at": ["50%", "80%"], "webhook": hook}
        gateway = start_gateway([house.active.url], alerts=alerts, budgets=[{"org": "acme", "limits": ["1000/day"]}])
        key = make_key(gateway, "alice", "acme", "x")
        body = plain("", max_tokens=600, messages=[{"role": "user", "content": order(tokens=500)}])
        await ask(gateway, key, body)
        await heard(receiver, 1)
        assert gateway.stop() == 0
        gateway.process = gateway._start()
        await asyncio.to_thread(gateway.wait_ready)
        await ask(gateway, key, plain(order(tokens=300), max_tokens=310))
        await heard(receiver, 2)
        await asyncio.sleep(1.5)

    shares = [one["data"]["share"] for one in receiver.heard]
    assert (shares, len(set(receiver.taken))) == ([0.5, 0.8], 2)
    assert receiver.ids == [receiver.taken[0]] * 3 + [receiver.taken[1]]
    assert {one["type"] for one in receiver.heard} == {"budget.reached"}
    assert receiver.heard[0]["data"]["scope"] == "org:acme"
    assert [fact["share"] for fact in gateway.journal() if fact["kind"] == "budget.reached"] == [0.5, 0.8]
    assert receiver.secret.removeprefix("whsec_") not in gateway.log()
    assert b'holdfast_webhooks_total{outcome="delivered"} 1.0' in gateway.get("/metrics", gateway.admin_url)[1]


async def heard(receiver, count):
    await asyncio.to_thread(until, lambda: len(receiver.heard) >= count, 15.0)
