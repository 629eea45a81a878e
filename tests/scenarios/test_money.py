"""Budgets that many share, in tokens and in money: org, team, user and key, each to its last token or micro-dollar."""

import asyncio
import random
import time
from collections import Counter
from typing import Any

import pytest

from gateway.books.keys import Keys
from guards.budget import Limit, Unit, Window
from tests.processes import ForkedGateway as Gateway
from tests.processes import id_of, until
from tests.scenarios.asking import (
    ask,
    chat,
    error,
    header,
    ids_of,
    order,
    plain,
    prompt_tokens,
    request_id,
    stop_reasons,
    usage,
)  # fmt: skip

PRICE = {"model": "stub", "input": 2, "output": 6, "cached": 1}  # dollars a million tokens: micro-dollars for one
CLIENTS = 60


def cost(seen: Any) -> int:
    """What an answer costs, in micro-dollars."""
    prompt, completion = usage(seen)
    return 2 * prompt + 6 * completion


def spent(gateway: Gateway) -> dict[tuple[str, str], int]:
    """What each scope spent of each unit, once nothing is held any more."""
    rows = until(lambda: (found := gateway.balances()) and not any(row.held for row in found) and found)
    return {(row.scope, row.unit): row.spent for row in rows}


def make_key(gateway: Gateway, user: str, org: str, team: str, *limits: Limit) -> str:
    """A key without a process of its own."""
    keys = Keys(gateway.data / "keys.db")
    secret, _ = keys.create(user, org, limits, team)
    keys.close()
    gateway.secrets.append(secret)
    return secret


@pytest.mark.parametrize("level", ["org:acme", "team:acme/search", "user:acme/alice", "key"])
async def test_every_level_ends_a_stream_exactly(start_gateway, house, level):
    """The tightest of four limits decides; the next request is refused by its name, and all four are charged alike."""
    body = chat(order(tokens=3000, per_chunk=16, tokens_per_s=3000))
    prompt = prompt_tokens(body)
    tight = Limit(prompt + 300)
    limits = {name: Limit(1_000_000) for name in ("org:acme", "team:acme/search", "user:acme/alice")}
    budgets = [
        {"org": "acme", **named, "limits": [str((tight if name == level else limit).amount)]}
        for (name, limit), named in zip(limits.items(), ({}, {"team": "search"}, {"user": "alice"}), strict=True)
    ]
    gateway = start_gateway([house.active.url], budgets=budgets)
    key = make_key(gateway, "alice", "acme", "search", tight if level == "key" else Limit(1_000_000))

    seen = await ask(gateway, key, body)
    again = await ask(gateway, key, body)

    assert (len(seen.ids), stop_reasons(seen)) == (300, ["budget_exceeded"])
    assert (again.status, error(again)["code"]) == (402, "budget_exceeded")
    assert (f"key:{id_of(key)}" if level == "key" else level) in error(again)["message"]
    assert spent(gateway) == {(name, "tokens"): prompt + 300 for name in (*limits, f"key:{id_of(key)}")}


async def test_a_crowd_never_spends_more_than_its_org_s_money(start_gateway, house):
    """Sixty requests at once with three keys of one org, hang-ups among them: bounded at every look, charged to the
    micro-dollar, and spent nearly to its end."""
    budget, rng = 30_000, random.Random(20261121)
    gateway = start_gateway(
        [house.active.url, house.standby.url],
        prices=[PRICE],
        budgets=[{"org": "acme", "limits": [f"{budget / 1e6:.6f} USD/total", "1000000 output tokens/month"]}],
    )
    keys = [make_key(gateway, user, "acme", "search", Limit(20_000)) for user in ("alice", "bob", "carol")]
    wrong: list[Any] = []
    over = asyncio.Event()

    async def watch() -> None:
        while not over.is_set():
            rows = [row for row in await asyncio.to_thread(gateway.balances) if row.unit == Unit.MONEY]
            wrong.extend(row for row in rows if row.spent + row.held > budget)
            await asyncio.sleep(0.005)

    async def one(number: int) -> Any:
        said = {"tokens": rng.randint(40, 200), "per_chunk": rng.choice([1, 3, 16]), "tokens_per_s": 400}
        stream, leaves = number % 4 != 3, number % 5 == 1
        body = (chat if stream else plain)(f"number {number}, " + order(**said), max_tokens=rng.randint(50, 200))
        await asyncio.sleep(rng.random())
        return await ask(
            gateway, rng.choice(keys), body, until=lambda seen: leaves and stream and len(seen.ids) > number % 16
        )

    watching = asyncio.create_task(watch())
    answers = await asyncio.gather(*map(one, range(CLIENTS)))
    while answers[-1].status != 402:
        answers.append(await ask(gateway, keys[len(answers) % 3], plain(order(tokens=90), max_tokens=100)))
    totals = spent(gateway)
    until(lambda: sum(fact["kind"] == "request.settled" for fact in gateway.journal()) >= len(answers))
    over.set()
    await watching

    facts = [fact for fact in gateway.journal() if fact["kind"] == "request.settled"]
    told: Counter[tuple[str, str]] = Counter()
    for fact in facts:
        told.update({(scope, unit): amount for (scope, unit, _), amount in fact.get("charges", ())})
    assert wrong == []
    assert {seen.status for seen in answers[:CLIENTS]} <= {200, 402, 429}
    assert +told == +Counter(totals)
    assert totals["org:acme", Unit.MONEY] == sum(fact.get("cost", 0) for fact in facts)
    assert 0.99 * budget < totals["org:acme", Unit.MONEY] <= budget
    for seen in answers:
        fact = next(one for one in facts if one["request_id"] == request_id(seen))
        assert seen.status == 200 or fact.get("cost", 0) == 0
        if seen.done:
            assert (fact["cost"], len(ids_of(seen))) == (cost(seen), usage(seen)[1])


async def test_a_model_without_a_price_is_refused_where_money_limits(start_gateway, house):
    """It runs where only tokens do."""
    gateway = start_gateway([house.active.url], budgets=[{"org": "acme", "limits": ["5 USD/month"]}])
    paying, counting = (
        make_key(gateway, "alice", "acme", "search"),
        make_key(gateway, "bob", "other", "x", Limit(9_999)),
    )

    refused = await ask(gateway, paying, plain())
    served = await ask(gateway, counting, plain())

    assert (refused.status, error(refused)["code"]) == (400, "model_without_price")
    assert "stub" in error(refused)["message"]
    assert served.status == 200


async def test_a_free_model_spends_no_money(start_gateway, house):
    """Not even where there is none left; its tokens are counted all the same."""
    free = PRICE | {"input": 0, "output": 0, "cached": 0}
    gateway = start_gateway(
        [house.active.url], prices=[free], budgets=[{"org": "acme", "limits": ["0.000001 USD/total", "5000"]}]
    )

    seen = await ask(gateway, make_key(gateway, "alice", "acme", "search"), plain(order(tokens=50)))

    assert seen.status == 200
    assert spent(gateway)["org:acme", Unit.MONEY] == 0
    assert spent(gateway)["org:acme", Unit.TOKENS] == sum(usage(seen))


@pytest.mark.parametrize("make", [chat, plain])
async def test_cached_input_costs_what_it_costs(start_gateway, house, make):
    """As the server tells it, and no more of it than there is input; streamed and whole."""
    gateway = start_gateway([house.active.url], prices=[PRICE], budgets=[{"org": "acme", "limits": ["1 USD/day"]}])
    key = make_key(gateway, "alice", "acme", "search")
    bodies = [make("x" * 60 + order(tokens=20, cached=cached)) for cached in (0, 40, 100_000)]

    facts = [gateway.settled(request_id(await ask(gateway, key, body))) for body in bodies]

    prompts = list(map(prompt_tokens, bodies))
    assert [fact.get("cached_tokens", 0) for fact in facts] == [0, 40, prompts[2]]
    assert [fact["cost"] for fact in facts] == [2 * prompts[0] + 120, 2 * prompts[1] - 40 + 120, prompts[2] + 120]
    assert spent(gateway)["org:acme", Unit.MONEY] == sum(fact["cost"] for fact in facts)


async def test_a_limit_that_is_lowered_binds_the_next_top_up(start_gateway, house):
    """A running stream ends within what it has leased; once it is raised again, requests are served."""
    gateway = start_gateway([house.active.url])
    key = make_key(gateway, "alice", "acme", "search", Limit(100_000))
    lowered = asyncio.Event()

    def lower(seen: Any) -> bool:
        if len(seen.ids) > 100 and not lowered.is_set():
            lowered.set()
            keys = Keys(gateway.data / "keys.db")
            keys.set_limit(f"key:{id_of(key)}", Limit(150))
            keys.close()
        return False

    seen = await ask(gateway, key, chat(order(tokens=3000, tokens_per_s=500)), until=lower)

    assert stop_reasons(seen) == ["budget_exceeded"]
    assert 150 < len(seen.ids) < 1500
    keys = Keys(gateway.data / "keys.db")
    keys.set_limit(f"key:{id_of(key)}", Limit(1_000_000, Window.TOTAL))
    keys.close()
    for _ in range(100):  # the gateway looks four times a second; on a starved machine, seldomer
        again = await ask(gateway, key, plain(order(tokens=5)))
        if again.status == 200:
            break
        await asyncio.sleep(0.05)
    assert again.status == 200


async def test_a_killed_gateway_charges_every_level(start_gateway, house):
    """After kill -9 and a restart nothing is held, and no level is charged less than was delivered."""
    gateway = start_gateway(
        [house.active.url], prices=[PRICE], budgets=[{"org": "acme", "limits": ["1 USD/total", "100000"]}]
    )
    key = make_key(gateway, "alice", "acme", "search", Limit(5_000))
    body = chat(order(tokens=2000, tokens_per_s=800, per_chunk=4))

    def kill(seen: Any) -> bool:
        if len(seen.ids) >= 300:
            gateway.kill()
        return False

    seen = await ask(gateway, key, body, until=kill)
    folder = gateway.folder / "again"
    folder.mkdir()
    (folder / "data").symlink_to(gateway.data)
    with Gateway(folder, [house.active.url]) as again:
        rows = {(row.scope, row.unit): row for row in again.balances()}

    got = prompt_tokens(body) + len(seen.ids)
    assert all(row.held == 0 for row in rows.values())
    assert got <= rows["org:acme", "tokens"].spent == rows[f"key:{id_of(key)}", "tokens"].spent <= 5_000
    assert 2 * prompt_tokens(body) + 6 * len(seen.ids) <= rows["org:acme", Unit.MONEY].spent <= 1_000_000


async def test_sessions_have_budgets_of_their_own(start_gateway, house):
    """One that is spent is refused by name, another one goes on; who names none has one turn's worth."""
    gateway = start_gateway([house.active.url], budgets=[{"org": "acme", "each_session": ["200 output tokens"]}])
    key = make_key(gateway, "alice", "acme", "search")
    body = chat(order(tokens=150, per_chunk=4))

    first = await ask(gateway, key, body, x_session_id="one")
    second = await ask(gateway, key, body, x_session_id="one")
    third = await ask(gateway, key, body, x_session_id="one")
    other = await ask(gateway, key, body, x_session_id="two")
    alone = [await ask(gateway, key, chat(order(tokens=900, per_chunk=4))) for _ in range(2)]

    assert [len(seen.ids) for seen in (first, second, other, *alone)] == [150, 50, 150, 200, 200]
    assert (stop_reasons(second), stop_reasons(alone[1])) == (["budget_exceeded"], ["budget_exceeded"])
    assert (third.status, error(third)["code"]) == (402, "budget_exceeded")
    assert f"session:{id_of(key)}/one" in error(third)["message"]
    assert gateway.settled(request_id(first))["session"] == "one"


@pytest.mark.parametrize("make", [chat, plain])
async def test_one_turn_may_use_so_much(start_gateway, house, make):
    """Exactly, whatever is left of all else; a prompt that is too long for it is refused before it is computed."""
    gateway = start_gateway([house.active.url], prices=[PRICE], budgets=[{"org": "acme", "each_turn": ["0.001 USD"]}])
    key = make_key(gateway, "alice", "acme", "search")
    body = make(order(tokens=900))

    seen = await ask(gateway, key, body)
    refused = await ask(gateway, key, make("x" * 600))

    paid = gateway.settled(request_id(seen))["cost"]
    assert 1_000 - 6 < paid <= 1_000
    assert gateway.settled(request_id(seen))["ending"] == "budget_exceeded"
    assert (refused.status, error(refused)["code"]) == (402, "budget_exceeded")
    assert f"one turn of key:{id_of(key)} may use, $0.001" in error(refused)["message"]


@pytest.mark.parametrize("name", ["x_session_id", "x_agent_id"])
@pytest.mark.parametrize("value", ["", "a b", "x" * 129])
async def test_names_of_sessions_and_agents_are_plain(house, name, value):
    """They end up in the books."""
    seen = await ask(house.gateway, house.key, plain(), **{name: value})

    assert (seen.status, error(seen)["param"]) == (400, name.replace("_", "-"))


async def test_rates_are_told_and_kept(start_gateway, house):
    """So many requests, then 429 and when to come again, in OpenAI's headers; tokens are set right by what was used."""
    rates = ["3 requests/hour", "2000 tokens/hour"]
    gateway = start_gateway([house.active.url], budgets=[{"org": "acme", "rates": rates}])
    key, stranger = make_key(gateway, "alice", "acme", "search"), make_key(gateway, "bob", "other", "search")

    served = [await ask(gateway, key, make(order(tokens=20), max_tokens=50)) for make in (chat, plain, chat)]
    refused = await ask(gateway, key, plain())
    free = await ask(gateway, stranger, plain(order(tokens=3)))

    assert [header(seen, "x-ratelimit-remaining-requests") for seen in served] == ["2", "1", "0"]
    used = sum(usage(seen)[0] + 20 for seen in served[:2])
    third = int(header(served[2], "x-ratelimit-remaining-tokens"))
    assert 2000 - used - 300 < third < 2000 - used
    assert (refused.status, error(refused)["code"]) == (429, "rate_limit_exceeded")
    assert header(refused, "retry-after") == "60"
    assert header(refused, "x-ratelimit-limit-requests") == "3"
    assert (free.status, header(free, "x-ratelimit-limit-requests")) == (200, None)


@pytest.mark.parametrize("per_chunk", [4, 50])  # beyond the burst, too
async def test_a_stream_comes_no_faster_than_it_may(start_gateway, house, per_chunk):
    """Two hundred tokens that a server has at once, at sixty a second: waited for, in steps, none lost; nobody takes
    the wait for a server's silence, and a stream beside it that has no such limit is not slowed."""
    gateway = start_gateway(
        [house.active.url, house.standby.url],
        budgets=[{"org": "slow", "rates": ["60 tokens/second per stream burst 20"]}],
        timeouts={"suspect_s": 0.2, "between_tokens_s": 0.5, "first_token_s": 1.0},
    )
    slow, free = (make_key(gateway, "somebody", org, "search", Limit(1_000_000)) for org in ("slow", "free"))
    body = chat(order(tokens=200, per_chunk=per_chunk, tokens_per_s=20_000))
    began = time.monotonic()

    async def timed(key: str) -> tuple[Any, float]:
        return await ask(gateway, key, body), time.monotonic() - began

    (seen, took_s), (other, other_s) = await asyncio.gather(timed(slow), timed(free))

    assert seen.ids == other.ids
    assert len(seen.ids) == 200
    assert took_s >= (180 - per_chunk) / 60
    assert other_s < took_s / 2
    fact = gateway.settled(request_id(seen))
    assert (fact["ending"], fact["failovers"], fact["hedged_tokens"]) == ("finished", 0, 0)


async def test_a_tree_of_agents_spends_no_more_than_its_root(start_gateway, house):
    """Children are charged to their parents, and have half of what those may; too deep a tree is the client's error."""
    gateway = start_gateway(
        [house.active.url], budgets=[{"org": "acme", "each_agent": ["2000"]}], limits={"agent_depth": 3}
    )
    key = make_key(gateway, "alice", "acme", "search", Limit(1_000_000))
    body = chat(order(tokens=5000, per_chunk=16, tokens_per_s=20_000))
    mine = f"agent:{id_of(key)}/planner"

    async def one(name: str) -> Any:
        return await ask(gateway, key, body, x_agent_id=name)

    child = await one("planner/search")
    grown = await asyncio.gather(*[one(f"planner/search{number}/reader") for number in range(6)])
    root = await one("planner")
    totals = spent(gateway)
    deep = await one("planner/search/reader/more")

    assert stop_reasons(child) == ["budget_exceeded"]
    assert totals[f"{mine}/search", "tokens"] == 1000
    assert all(totals.get((f"{mine}/search{number}/reader", "tokens"), 0) <= 500 for number in range(6))
    assert totals[mine, "tokens"] == 2000
    assert sum(sum(usage(seen)) for seen in (child, *grown, root) if seen.status == 200) == 2000
    assert (deep.status, error(deep)["param"]) == (400, "x-agent-id")
