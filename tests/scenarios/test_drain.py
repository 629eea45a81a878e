"""Planned moves: a server is drained under load, and may be stopped; its clients notice nothing."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from loadtests.processes import StubProcess, start_stub
from tests.processes import HOLDFAST, ROOT, Gateway, until
from tests.scenarios.asking import ask, chat, ids_of, order, plain, request_id, text_of, undisturbed, usage
from tests.scenarios.test_health import name, servers

pytestmark = pytest.mark.slow

RATE = 50  # tokens per second and stream
TOKENS = 300  # of an answer: six seconds
STREAMS = 8
AT_ONCE = 2
TTFT_S = 0.25  # so that moves take a while, and can be counted
STAYS = {"seed": 7}  # without temperature 0 it is not continued elsewhere


@dataclass
class Pair:
    """A gateway, a server that has all the streams, and one beside it."""

    gateway: Gateway
    busy: StubProcess
    other: StubProcess
    key: str

    def drain(self, *options: str) -> "subprocess.CompletedProcess[str]":
        """What `holdfast drain` says of the busy one."""
        run = [HOLDFAST, "drain", name(self.busy), "--config", self.gateway.config_file, *options]
        return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)

    def undrain(self) -> str:
        run = [HOLDFAST, "replicas", "--undrain", name(self.busy), "--config", self.gateway.config_file]
        return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    async def told(self) -> dict[str, Any]:
        """What the admin port says of the busy one."""
        _, body = await asyncio.to_thread(self.gateway.get, "/admin/replicas", self.gateway.admin_url)
        return next(one for one in json.loads(body)["replicas"] if one["replica"] == name(self.busy))

    async def begin(self, *bodies: dict[str, Any]) -> "list[asyncio.Task[Any]]":
        """Ask, and wait until all of it runs at the busy one, with a few tokens delivered."""
        asked = [asyncio.create_task(ask(self.gateway, self.key, body)) for body in bodies]
        until_s = time.monotonic() + 5
        while (await self.told())["load"] < len(bodies):
            assert time.monotonic() < until_s, "not all of it came to the busy one"
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        return asked

    def facts(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.gateway.journal() if one["kind"] == kind]


@pytest.fixture
def pair(start_gateway, tokenizer):
    """Make one: the other server is a standby, so that all goes to the busy one first."""

    @asynccontextmanager
    async def make(**more: Any) -> AsyncIterator[Pair]:
        with start_stub(tokens_per_s=RATE) as busy, start_stub(tokens_per_s=RATE) as other:
            options = {"tokenizer": tokenizer, "timeouts": {"probe_every_s": 0.25, "suspect_s": 3.0}} | more
            gateway = start_gateway([busy.url, other.url], **options)
            yield Pair(gateway, busy, other, gateway.key("somebody"))

    return make


async def test_all_streams_of_a_drained_server_go_on_elsewhere_and_no_client_notices(pair):
    """Token for token, charged once, and by no fault of the server: no breaker, no look, no lost leg."""
    bodies = [chat(f"number {number} " + order(tokens=TOKENS, ttft_s=TTFT_S)) for number in range(STREAMS)]
    async with pair() as two:
        whole = [await undisturbed(two.other, body) for body in bodies[:1]]
        whole += await asyncio.gather(*(undisturbed(two.other, body) for body in bodies[1:]))
        running = await two.begin(*bodies)
        said = await asyncio.to_thread(two.drain, "--at-once", str(AT_ONCE))
        told, still = await two.told(), sum(not one.done() for one in running)
        later = await ask(two.gateway, two.key, chat(order(tokens=2)))
        again = await asyncio.to_thread(two.drain, "--json")
        ended = await asyncio.gather(*running)
        metrics = [two.gateway.metric(one, **labels) for one, labels in (
            ("holdfast_moves_total", {"reason": "drain"}), ("holdfast_replica_drained", {"replica": name(two.busy)}),
            ("holdfast_drains_total", {}), ("holdfast_replica_breaker_turns_total", {}),
        )]  # fmt: skip
        settled = [two.gateway.settled(request_id(one)) for one in ended]
        facts = two.gateway.journal()

    assert (said.returncode, said.stdout.split(" s;")[1]) == (0, " it may be stopped\n")
    moved, _, rest = said.stdout.partition(" (pauses of ")
    assert moved == f"{name(two.busy)}: {STREAMS} streams moved"
    assert re.match(r"\d+ ms, \d+ ms at most\), 0 left to finish, empty after ", rest)
    assert still == STREAMS  # or they ended by themselves, and this shows nothing
    assert [(ids_of(one), text_of(one)) for one in ended] == [(ids_of(one), text_of(one)) for one in whole]
    assert [one["charged_tokens"] for one in settled] == [sum(usage(one)) for one in whole]
    assert [one["failovers"] for one in settled] == [1] * STREAMS
    assert servers([later]) == [name(two.other)]
    assert (told["state"], told["drained"], told["load"]) == ("drained", "an operator drains it", 0)
    assert (json.loads(again.stdout)["empty"], json.loads(again.stdout)["moved"]) == (True, STREAMS)
    assert metrics == [STREAMS, 1, 0, 0]
    assert [(one["breakers"][0]["failed"], one["flaps"]) for one in [told]] == [(0, 0)]
    moves = [one for one in facts if one["kind"] == "leg.ended"]
    assert [(one["cause"], one["lost"]) for one in moves] == [("moved", False)] * STREAMS
    on_their_way = [int(count) for count in re.findall(r"(\d+) on their way", said.stderr)]
    assert max(on_their_way) == AT_ONCE
    assert [one["moved"] for one in facts if one["kind"] == "replica.emptied"] == [STREAMS]


async def test_what_cannot_go_on_exactly_is_left_to_end_where_it_is(pair):
    """So is a plain answer. Their server is not empty until then, and after the limit of time that is said."""
    async with pair() as two:
        bodies = [chat(order(tokens=TOKENS)), chat(order(tokens=TOKENS), **STAYS), plain(order(tokens=TOKENS))]
        running = await two.begin(*bodies)
        soon = await asyncio.to_thread(two.drain, "--within", "0.7")
        there = (await two.told())["load"]
        said = await asyncio.to_thread(two.drain)
        ended = await asyncio.gather(*running)
        whole, seeded = [await undisturbed(two.other, body) for body in bodies[:2]]
        failovers = [two.gateway.settled(request_id(one))["failovers"] for one in ended]

    assert (soon.returncode, there) == (1, 2)
    assert "1 stream moved (pauses of " in soon.stdout
    for words in ("at most), 2 left to finish, 2 still there", "do not stop it yet", "seed cannot", "plain"):
        assert words in soon.stdout
    assert (said.returncode, "at most), 2 left to finish, empty after" in said.stdout) == (0, True)
    assert [ids_of(one) for one in ended] == [ids_of(whole), ids_of(seeded), ids_of(whole)]
    assert failovers == [1, 0, 0]


async def test_nothing_is_moved_where_nobody_else_can_take_it_and_that_is_said(pair):
    """The streams stay, and end well; the server is served as the last one that there is."""
    async with pair() as two:
        await asyncio.to_thread(two.other.stop)
        running = await two.begin(*[chat(order(tokens=TOKENS))] * 2)
        gone = {"replica": name(two.other)}
        await asyncio.to_thread(until, lambda: two.gateway.metric("holdfast_replica_up", **gone) == 0)
        said = await asyncio.to_thread(two.drain, "--within", "0.5")
        later = await ask(two.gateway, two.key, chat(order(tokens=2)))
        ended = await asyncio.gather(*running)

    assert said.returncode == 1
    assert "no other server of stub can take a stream now" in said.stdout
    assert "0 streams moved" in said.stdout
    assert [one.finish for one in ended] == ["stop"] * 2
    assert servers([later]) == [name(two.busy)]


async def test_a_drained_server_is_undrained_by_one_command(pair):
    """It gets requests again; said twice, either changes nothing more; of an unknown one it is an error."""
    async with pair() as two:
        empty = await asyncio.to_thread(two.drain)
        twice = await asyncio.to_thread(two.drain)
        away = await ask(two.gateway, two.key, chat(order(tokens=2)))
        said = [await asyncio.to_thread(two.undrain) for _ in range(2)]
        back = await ask(two.gateway, two.key, chat(order(tokens=2)))
        drained = [one["drained"] for one in two.facts("replica.drained")]
        busy, two.busy.url = name(two.busy), "http://nobody"
        unknown = await asyncio.to_thread(two.drain)

    assert (empty.returncode, twice.returncode) == (0, 0)
    assert servers([away]) == [name(two.other)]
    assert servers([back]) == [busy]
    assert said[0].endswith("gets requests again\n")
    assert said[1].endswith("was not drained\n")
    assert drained == [True, False]
    assert (unknown.returncode, "no replica of that name" in unknown.stderr) == (1, True)
