"""Budgets over real processes: never a token too many, never one charged that was not delivered."""

import asyncio
import random
import sqlite3
import threading
import time
from itertools import pairwise

import pytest

from gateway.books.ledger.tables import ledger_file
from loadtests.stub_tokenizer import decode_bytes
from tests.loadtests.raw_client import Seen
from tests.processes import ForkedGateway as Gateway
from tests.processes import id_of, until
from tests.scenarios.asking import (
    CHAT,
    TEXT,
    House,
    ask,
    chat,
    error,
    ids_of,
    order,
    plain,
    prompt_tokens,
    request_id,
    stop_reasons,
    text_of,
    usage,
)

LOCKED_S = 2.0


class Watch(threading.Thread):
    """Reads one account again and again, as fast as it can, and keeps what breaks the bound."""

    def __init__(self, gateway: Gateway, key: str, limit: int) -> None:
        super().__init__(daemon=True)
        self._gateway, self._key_id, self._limit = gateway, id_of(key), limit
        self._over = threading.Event()
        self.looks, self.spent = 0, 0
        self.wrong: list[object] = []

    def run(self) -> None:
        while not self._over.is_set():
            for one in self._gateway.balances():
                if one.scope != f"key:{self._key_id}":
                    continue
                self.looks += 1
                if one.held + one.spent > self._limit or one.held < 0 or one.spent < self.spent:
                    self.wrong.append(one)
                self.spent = one.spent
            time.sleep(0.001)

    def end(self) -> None:
        self._over.set()
        self.join()


@pytest.fixture(autouse=True)
def disarmed(house):
    """Leave nothing armed."""
    yield
    house.active.arm(None)
    house.standby.arm(None)


def settled(house: House, key: str) -> tuple[int, int]:
    """(spent, held) of a key, once nothing is held any more."""
    account = house.gateway.balance
    until(lambda: account(key).held == 0)
    return account(key).spent, account(key).held


async def test_hundred_requests_at_once_never_exceed_a_budget(house):
    """100 concurrent requests, hang-ups and cut servers among them, deliver and charge within the budget, always."""
    budget, rng = 4000, random.Random(20261121)
    key = house.gateway.key("crowd", budget)
    watch = Watch(house.gateway, key, budget)
    watch.start()

    async def one(number: int) -> tuple[bool, Seen]:
        said = {"tokens": rng.randint(20, 60), "per_chunk": rng.choice([1, 3, 16]), "tokens_per_s": 300}
        stream, leaves = number % 3 != 2, number % 4 == 1
        if stream and number % 5 == 0:
            said |= {"fault": "cut", "at": rng.randint(1, 15)}
        body = (chat if stream else plain)(f"number {number}, " + order(**said), max_tokens=rng.randint(16, 64))
        after = rng.randint(0, 12)
        await asyncio.sleep(rng.random())
        return leaves and stream, await ask(
            house.gateway, key, body, until=lambda seen: leaves and stream and len(seen.ids) > after
        )

    answers = await asyncio.gather(*map(one, range(100)))

    spent, held = settled(house, key)
    until(lambda: len(house.gateway.settlements(key)) >= 100)
    facts = house.gateway.settlements(key)
    watch.end()
    charged = {fact["request_id"]: fact["charged_tokens"] for fact in facts}
    assert len(charged) == len(facts) == 100  # each settled once
    assert watch.wrong == []
    assert watch.looks > 20
    assert held == 0
    assert spent == sum(charged.values()) <= budget
    assert spent > budget // 2
    for left, seen in answers:
        mine = charged[request_id(seen)]
        received = len(ids_of(seen))
        prompt = next((len(event["prompt_token_ids"]) for event in seen.events if event.get("prompt_token_ids")), 0)
        if seen.status == 200 and not seen.events:
            prompt = usage(seen)[0]
        assert seen.status in (200, 402, 429)
        assert mine == prompt + received or (left and mine >= prompt + received), (seen.status, seen.body)
    assert {seen.status for _, seen in answers} >= {200}
    assert sum(len(ids_of(seen)) for _, seen in answers) < budget


async def test_budget_that_ends_in_mid_stream_cuts_exactly(house):
    """Two streams on one budget get every token of it and none more, also where it ends inside a chunk of 16."""
    bodies = [chat(f"{n} " + order(tokens=3000, per_chunk=16, tokens_per_s=2000)) for n in range(2)]
    prompts = sum(map(prompt_tokens, bodies))
    key = house.gateway.key("two", prompts + 901)

    answers = await asyncio.gather(*(ask(house.gateway, key, body) for body in bodies))

    assert sum(len(seen.ids) for seen in answers) == 901
    for body, seen in zip(bodies, answers, strict=True):
        assert (seen.status, seen.done, seen.finish) == (200, True, "length")
        assert stop_reasons(seen) == ["budget_exceeded"]
        assert usage(seen) == (prompt_tokens(body), len(seen.ids))
        assert seen.text.rstrip("\ufffd") in decode_bytes(seen.ids).decode("utf-8", "replace")
        assert house.gateway.settled(request_id(seen))["ending"] == "budget_exceeded"
    assert settled(house, key) == (prompts + 901, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_max_tokens_upstream_is_what_the_whole_budget_could_pay(house, stream):
    """A lone request is sent upstream with exactly the budget's rest as max_tokens, ends there and says why."""
    body = (chat if stream else plain)(order(tokens=3000, per_chunk=16))
    prompt = prompt_tokens(body)
    key = house.gateway.key("alone", prompt + 700)

    seen = await ask(house.gateway, key, body)
    again = await ask(house.gateway, key, body)

    assert house.active.stats()["recorded"][-1]["body"]["max_tokens"] == 700
    assert len(ids_of(seen)) == 700
    assert usage(seen) == (prompt, 700)
    choice = (seen.events[-2] if stream else seen.json)["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "budget_exceeded")
    assert settled(house, key) == (prompt + 700, 0)
    assert (again.status, error(again)["code"]) == (402, "budget_exceeded")


async def test_own_max_tokens_is_kept_and_not_blamed_on_the_budget(house):
    """A client's own limit below the budget goes upstream unchanged, and its end is an ordinary length."""
    body = chat(order(tokens=3000), max_tokens=20)
    key = house.gateway.key("modest", prompt_tokens(body) + 20)

    seen = await ask(house.gateway, key, body)

    assert house.active.stats()["recorded"][-1]["body"]["max_tokens"] == 20
    assert (len(seen.ids), seen.finish, stop_reasons(seen)) == (20, "length", [None])


async def test_client_that_leaves_before_the_first_token_pays_nothing(house):
    """A client that hangs up before the first token is charged nothing, and its hold is given back."""
    key = house.gateway.key("hasty", 10_000)
    mine = f"key:{id_of(key)}"
    for make in (chat, plain):
        task = asyncio.create_task(ask(house.gateway, key, make(order(tokens=50, ttft_s=5))))
        await asyncio.to_thread(until, lambda: any(one.held for one in house.gateway.balances() if one.scope == mine))
        task.cancel()
        await asyncio.to_thread(until, lambda: not house.gateway.balance(key).held)

    facts = await asyncio.to_thread(until, lambda: house.gateway.settlements(key)[1:])

    assert settled(house, key) == (0, 0)
    assert facts[0]["ending"] == "client_left"


async def test_client_that_leaves_in_mid_stream_pays_what_it_was_sent(house):
    """A client that hangs up after some tokens pays its prompt and those tokens, once."""
    body, key = chat(order(tokens=400, tokens_per_s=20)), house.gateway.key("leaver", 10_000)

    seen = await ask(house.gateway, key, body, until=lambda seen: len(seen.ids) >= 10)

    fact = house.gateway.settled(request_id(seen))
    assert fact["ending"] == "client_left"
    assert 10 <= len(seen.ids) <= fact["charged_tokens"] - prompt_tokens(body) <= len(seen.ids) + 10
    assert settled(house, key) == (fact["charged_tokens"], 0)


@pytest.mark.parametrize("fault", ["no_ids", "status"])
@pytest.mark.parametrize("make", [chat, plain])
async def test_what_cannot_be_counted_is_neither_delivered_nor_charged(house, fault, make):
    """Servers that hide their ids, or fail, give the client an error, and cost it nothing."""
    key = house.gateway.key("uncounted", 10_000)
    for stub in (house.active, house.standby):
        stub.arm(fault, times=4, status=500)

    seen = await ask(house.gateway, key, make(order(tokens=20)))

    assert (seen.status, error(seen)["code"]) == (502, "upstream_error")
    assert settled(house, key) == (0, 0)


@pytest.mark.parametrize("make", [chat, plain])
async def test_lying_usage_is_not_believed(house, make):
    """A server that claims three times the usage: the client pays for the ids it got."""
    body, key = make(order(tokens=25)), house.gateway.key("lied to", 10_000)
    house.active.arm("wrong_usage")

    await ask(house.gateway, key, body)

    assert settled(house, key) == (prompt_tokens(body) + 25, 0)


@pytest.mark.parametrize("budget", [None, 10_000])
@pytest.mark.parametrize("stream", [True, False])
async def test_all_choices_and_prompts_are_charged(house, stream, budget):
    """n=3 and several prompts cost each prompt once and every token of every choice, streamed and plain."""
    common = {"model": "stub", "stream": stream, "return_token_ids": True, "max_tokens": 30}
    said = [order(tokens=20) + "<|assistant|>", "another " + order(tokens=20) + "<|assistant|>"]
    cases = [
        (chat(order(tokens=20), **common | {"n": 3}), CHAT, 3 * 20),
        ({**common, "prompt": said}, TEXT, 2 * 20),
        ({**common, "prompt": said, "n": 2}, TEXT, 4 * 20),
        ({**common, "prompt": [[300, 301], [302]]}, TEXT, None),
    ]
    if not stream:
        cases[0][0].pop("stream_options")
    for body, path, tokens in cases:
        key = house.gateway.key("many", budget)

        seen = await ask(house.gateway, key, body, path)

        prompts = body.get("prompt", [None])
        prompt = sum(len(one) if isinstance(one, list) else prompt_tokens(body | {"prompt": one}) for one in prompts)
        assert seen.status == 200
        assert tokens is None or len(ids_of(seen)) == tokens
        assert settled(house, key) == (prompt + len(ids_of(seen)), 0)


async def test_choices_that_the_budget_cannot_pay_are_cut_to_it(house):
    """n=3 on a budget that ends: all choices together stay within it, and each one ends."""
    body = chat(order(tokens=900), n=3)
    key = house.gateway.key("three", prompt_tokens(body) + 100)

    seen = await ask(house.gateway, key, body)

    assert len(ids_of(seen)) == 100
    assert stop_reasons(seen) == ["budget_exceeded"] * 3
    assert all(text_of(seen, index) for index in range(3))
    assert settled(house, key) == (prompt_tokens(body) + 100, 0)


async def test_media_needs_a_key_without_a_budget(house):
    """Media, whose tokens nobody can count before, are refused to a budgeted key only."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    body = plain() | {"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, image]}]}

    bounded = await ask(house.gateway, house.gateway.key("bounded", 10_000), body)
    free = await ask(house.gateway, house.key, body)

    assert (bounded.status, error(bounded)["code"]) == (400, "unbounded_cost")
    assert free.status == 200


async def test_failover_is_paid_by_the_house(house):
    """A stream that was moved costs what it would have cost undisturbed; the journal tells what was recomputed."""
    body, key = chat(order(tokens=40)), house.gateway.key("moved", 10_000)
    house.active.arm("cut", at=17)

    seen = await ask(house.gateway, key, body)

    assert settled(house, key) == (prompt_tokens(body) + 40, 0)
    assert house.gateway.settled(request_id(seen))["recomputed_tokens"] == prompt_tokens(body) + 17


async def test_locked_ledger_pauses_a_stream_and_ends_none(start_gateway, house):
    """A stranger's lock on the ledger, for two seconds of a long answer: the stream waits, then comes whole."""
    gateway: Gateway = start_gateway([house.active.url])
    body, key = chat(order(tokens=4000, tokens_per_s=2000, per_chunk=4)), gateway.key("patient", 100_000)
    locks: list[threading.Thread] = []
    times: list[tuple[float, int]] = []

    def lock() -> None:
        db = sqlite3.connect(ledger_file(gateway.data), timeout=5, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        time.sleep(LOCKED_S)
        db.execute("ROLLBACK")
        db.close()

    def lock_once(seen: Seen) -> bool:
        times.append((time.monotonic(), len(seen.ids)))
        if len(seen.ids) >= 300 and not locks:
            locks.append(threading.Thread(target=lock))
            locks[0].start()
        return False

    seen = await ask(gateway, key, body, until=lock_once)
    locks[0].join()

    assert max(later - earlier for (earlier, _), (later, _) in pairwise(times)) > LOCKED_S / 3
    assert (seen.done, seen.finish, len(seen.ids)) == (True, "stop", 4000)
    assert gateway.settled(request_id(seen))["ending"] == "finished"
    account = gateway.paid(key)
    assert account.spent == prompt_tokens(body) + 4000


@pytest.mark.parametrize("make", [chat, plain])
async def test_a_revoked_key_s_requests_end_within_a_second(house, make):
    """`holdfast keys revoke` refuses the next request, and ends those that run; what was delivered is charged."""
    key, other = house.gateway.keys_create("leaving", 10_000), house.gateway.key("staying", 10_000)
    body, shorter = make(order(tokens=400, tokens_per_s=40)), make(order(tokens=160, tokens_per_s=40))
    asked = ((key, body), (other, shorter))
    running = [asyncio.create_task(ask(house.gateway, secret, said)) for secret, said in asked]
    await asyncio.sleep(0.5)

    await asyncio.to_thread(house.gateway.cli, "keys", "revoke", id_of(key))
    begin_s = time.monotonic()
    refused = await ask(house.gateway, key, plain())
    ended = await running[0]
    took_s = time.monotonic() - begin_s

    assert (refused.status, error(refused)["code"]) == (401, "invalid_api_key")
    assert took_s < 1
    if make is chat:
        assert not ended.done
        assert error(ended)["code"] == "key_revoked"
        assert 0 < len(ended.ids) < 400
    else:
        assert (ended.status, error(ended)["code"]) == (401, "invalid_api_key")
    received = prompt_tokens(body) + len(ended.ids) if make is chat else 0
    assert settled(house, key) == (received, 0)
    assert len(ids_of(await running[1])) == 160


async def test_killed_gateway_never_delivered_what_it_had_not_charged(start_gateway, house):
    """kill -9 of the gateway in mid-stream: after the restart the ledger holds at least what the client has."""
    gateway = start_gateway([house.active.url])
    key = gateway.key("survivor", 5000)
    body = chat(order(tokens=2000, tokens_per_s=800, per_chunk=4))

    def kill(seen: Seen) -> bool:
        if len(seen.ids) >= 300:
            gateway.kill()
        return False

    seen = await ask(gateway, key, body, until=kill)
    folder = gateway.folder / "again"
    folder.mkdir()
    (folder / "data").symlink_to(gateway.data)
    with Gateway(folder, [house.active.url]) as again:
        account = again.balance(key)

    assert len(seen.ids) >= 300
    assert account.held == 0
    assert prompt_tokens(body) + len(seen.ids) <= account.spent <= 5000
