"""Real vLLM servers that share a page store: sessions that move by plan, and between turns, and a hot standby."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tokenizers import Tokenizer

from gateway.local.engine import Engine
from tests.answers import Answer, ask
from tests.conftest import Teller
from tests.processes import Gateway, until
from tests.shared_pages import BLOCK, KINDS, conversation, paged_fleet, status

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.prove]

PROMPT_TOKENS = 1200
TOKENS = 1500  # seconds of work, so that a move falls into it; what has ended by then is asked for again
STREAMS = 2
TRIES = 4
WAIT_S = 120.0
TOLD = ["--enable-prompt-tokens-details"]
GREEDY = KINDS[1]  # with a repetition_penalty: the tiny model says something


@pytest.fixture(scope="module")
def fleet(engine_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Engine]]:
    """Two servers; the last test ends one of them."""
    folder = tmp_path_factory.mktemp("moves") / "fleet"
    with paged_fleet(2, engine_model, folder, arguments=TOLD, on_progress=Teller()) as fleet:
        yield fleet


class House:
    """A gateway before them, whose streams are not raced: a move is a planned one."""

    def __init__(self, gateway: Gateway, session: aiohttp.ClientSession, fleet: list[Engine]) -> None:
        self.gateway, self.session, self.fleet = gateway, session, fleet
        self.key = gateway.key("alice", 10_000_000)
        self.spent = 0

    async def ask(self, body: dict[str, Any], name: str, answer: Answer | None = None) -> Answer:
        """A turn of a session."""
        got = await ask(self.session, self.gateway.url, body, key=self.key, answer=answer, session_id=name)
        assert got.usage is not None, got.error
        self.spent += got.usage["prompt_tokens"] + got.tokens
        return got

    async def begin(self, body: dict[str, Any], name: str) -> "tuple[asyncio.Task[Answer], Answer]":
        """A turn that has brought tokens."""
        answer = Answer()
        task = asyncio.create_task(self.ask(body, name, answer))
        await asyncio.to_thread(until, lambda: answer.tokens > 2 * BLOCK, WAIT_S)
        return task, answer

    async def order(self, path: str, **body: Any) -> dict[str, Any]:
        async with self.session.post(f"{self.gateway.admin_url}/admin/{path}", json=body) as answer:
            told: dict[str, Any] = json.loads(await answer.text())
            assert answer.status == 200, told
            return told

    def replicas(self) -> dict[str, dict[str, Any]]:
        told = json.loads(self.gateway.get("/admin/replicas", self.gateway.admin_url)[1])
        return {one["replica"]: one for one in told["replicas"]}

    def stores(self) -> bool:
        """Whether all have told of their store."""
        return all(one["pages"]["store"] for one in self.replicas().values())

    def other(self, at: str | None) -> str:
        return next(one.address for one in self.fleet if one.address != at)

    def restored(self, answer: Answer) -> dict[str, Any]:
        """What is in the journal of how one ended."""
        assert answer.request_id is not None
        return self.gateway.settled(answer.request_id)

    async def wanted(self, body: dict[str, Any]) -> Answer:
        """The same, undisturbed."""
        return await ask(self.session, self.fleet[1].url, body)


@pytest.fixture
def house(fleet: list[Engine], engine_model: Path, tmp_path: Path):
    """Make one; its servers have told of their store."""

    @asynccontextmanager
    async def make(**more: Any) -> AsyncIterator[House]:
        file = engine_model / "tokenizer.json"
        said: dict[str, Any] = {"limits": {"hedges": 0}, "integrity": {"ask_every_s": 0.5}} | more
        upstreams = [engine.url for engine in fleet]
        with Gateway(tmp_path, upstreams, model="tiny", tokenizer=file, standby=False, **said) as gateway:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                house = House(gateway, session, fleet)
                await asyncio.to_thread(until, house.stores, WAIT_S)
                yield house
                paid = await asyncio.to_thread(gateway.paid, house.key)
            assert paid.spent == house.spent  # nobody was charged for what was loaded ahead, or computed twice
            assert gateway.faults() == []

    return make


@pytest.fixture(scope="module")
def words(engine_model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(engine_model / "tokenizer.json"))


async def test_a_drained_servers_streams_go_on_with_pages_that_were_loaded_before_they_were_cut(house, words):
    """Exactly; of prompt and answer nearly nothing is computed again. Then the next turns go where they went."""
    async with house() as at_home:
        for attempt in range(TRIES):  # a fast server may be done before it is drained, which shows nothing
            bodies = [conversation(GREEDY, words, 10 * attempt + n, PROMPT_TOKENS, TOKENS) for n in range(STREAMS)]
            begun = [await at_home.begin(body, f"s{attempt}") for body in bodies]
            name = begun[0][1].replica
            assert name is not None
            told = await at_home.order(f"replicas/{name}/drain")
            got = await asyncio.gather(*(task for task, _ in begun))
            moved = [one for one in got if one.said is not None]
            wanted = [await at_home.wanted(body) for body in bodies]
            assert [one.content for one in got] == [one.content for one in wanted]
            if moved:
                break
            await at_home.order(f"replicas/{name}/undrain")
        facts = [await asyncio.to_thread(at_home.restored, one) for one in moved]
        later = await at_home.ask(conversation(GREEDY, words, 99, 64, 4), f"s{attempt}")
        await asyncio.to_thread(until, lambda: not at_home.replicas()[name]["sessions"], WAIT_S)
        warmed = at_home.gateway.metric("holdfast_tokens_total", kind="warmed")
        await at_home.order(f"replicas/{name}/undrain")

    assert moved
    assert told["draining"]
    assert later.replica == at_home.other(name)
    assert warmed >= len(moved) * PROMPT_TOKENS
    for fact in facts:
        assert fact["restored_tokens"] >= PROMPT_TOKENS - 2 * BLOCK
        assert fact["recomputed_tokens"] + fact["restored_tokens"] >= PROMPT_TOKENS


async def test_a_session_is_moved_by_an_operator_and_says_what_it_cost(house, words):
    """Its stream goes on exactly at the server that was named."""
    async with house() as at_home:
        for attempt in range(TRIES):
            body = conversation(GREEDY, words, 1000 + attempt, PROMPT_TOKENS, TOKENS)
            task, answer = await at_home.begin(body, f"m{attempt}")
            there = at_home.other(answer.replica)
            told = await at_home.order(f"sessions/m{attempt}/move", to=there)
            got = await task
            wanted = await at_home.wanted(body)
            assert got.content == wanted.content
            if told["moved"]:
                break
        later = await at_home.ask(conversation(GREEDY, words, 98, 64, 4), f"m{attempt}")

    assert (told["moved"], told["left"], told["from"]) == (1, {}, [answer.replica])
    assert told["pause_ms"]["most"] > 0
    assert told["recomputed_tokens"] < PROMPT_TOKENS / 2
    assert later.replica == there


async def test_the_next_turn_of_a_hot_session_finds_its_pages_where_its_server_is_gone(house, words):
    """They were loaded there at the end of the turn before; its server is killed between the two."""
    tiers = [{"name": "default", "hot_standby": {}}]
    async with house(tiers=tiers) as at_home:
        body = conversation(GREEDY, words, 2000, PROMPT_TOKENS, 8)
        first = await at_home.ask(body, "h")
        there = at_home.other(first.replica)

        def warm() -> float:
            return at_home.gateway.metric("holdfast_warmings_total", replica=there, outcome="loaded")

        await asyncio.to_thread(until, lambda: at_home.replicas()[there]["hot_sessions"] == 1 and warm(), WAIT_S)
        lost = next(engine for engine in at_home.fleet if engine.address == first.replica)
        loaded = status(next(engine for engine in at_home.fleet if engine.address == there))["store"]["loaded"]
        await asyncio.to_thread(lost.kill)
        await asyncio.to_thread(until, lambda: at_home.replicas()[str(first.replica)]["state"] == "down", WAIT_S)
        second = await at_home.ask(body, "h")
        fact = await asyncio.to_thread(at_home.restored, second)
        (moved,) = [one for one in at_home.gateway.journal() if one["kind"] == "session.moved"]

    assert second.content[:2] == first.content[:2]
    assert second.replica == there
    assert loaded >= PROMPT_TOKENS // BLOCK - 1
    assert (fact["came_from"], moved["same_model"], moved["why"]) == (first.replica, True, "turn")
    assert fact["cached_tokens"] >= PROMPT_TOKENS - 2 * BLOCK
