"""Sessions that move: between turns, with a server that is drained or dies, by an operator's word; and hot standbys."""

import asyncio
import hashlib
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from loadtests.processes import StubProcess, start_stub
from tests.loadtests.raw_client import Seen
from tests.processes import HOLDFAST, ROOT, Gateway, id_of, until
from tests.scenarios.asking import ask, chat, header, ids_of, order, plain, request_id, undisturbed

pytestmark = pytest.mark.slow

STORE = {"kind": "lmdb", "queued_pages": 0, "lag_s": 0.0}
PREFILL_TOKEN_S = 0.0004  # so that a prompt of a thousand tokens takes long enough to be missed
LONG = "x" * 1200 + " "
RATE, TOKENS = 50, 200  # tokens per second and stream, and of an answer
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
HURRIED = {"probe_every_s": 0.25, "probe_s": 0.5, "suspect_s": 3.0}


def name(stub: StubProcess) -> str:
    return stub.url.removeprefix("http://")


@dataclass
class Pair:
    """A gateway and two active servers, whose plugins share a page store."""

    gateway: Gateway
    stubs: dict[str, StubProcess]
    key: str

    def other(self, at: str) -> str:
        return next(one for one in self.stubs if one != at)

    async def turn(self, session: str, said: str = "hello", **more: Any) -> Seen:
        seen = await ask(self.gateway, self.key, chat(said, **more), x_session_id=session)
        assert seen.status == 200
        return seen

    async def begin(self, session: str, body: dict[str, Any]) -> "tuple[asyncio.Task[Seen], str]":
        """Begin a stream, and wait until it brings tokens; where it runs."""
        before = {at: self.asked(at) for at in self.stubs}
        tokens = {at: self.tokens(at) for at in self.stubs}
        task = asyncio.create_task(ask(self.gateway, self.key, body, x_session_id=session))

        def where() -> str | None:
            return next((at for at in self.stubs if len(self.asked(at)) > len(before[at])), None)

        at = await asyncio.to_thread(until, where)
        assert at is not None
        await asyncio.to_thread(until, lambda: self.tokens(at) > tokens[at] + 5)  # its client has some by then
        return task, at

    def tokens(self, at: str) -> int:
        """How many a server has sent."""
        return int(self.stubs[at].stats()["tokens_sent_total"])

    def asked(self, at: str) -> list[dict[str, Any]]:
        """What a server was asked for by now, but for canaries."""
        bodies = [one["body"] for one in self.stubs[at].stats()["recorded"]]
        return [one for one in bodies if one.get("prompt") != [1]]

    def facts(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.gateway.journal() if one["kind"] == kind]

    def told(self, at: str) -> dict[str, Any]:
        _, body = self.gateway.get("/admin/replicas", self.gateway.admin_url)
        return next(one for one in json.loads(body)["replicas"] if one["replica"] == at)

    async def order(self, path: str, **body: Any) -> tuple[int, Any]:
        """POST to the admin port; status and answer."""

        def post() -> tuple[int, Any]:
            data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
            request = urllib.request.Request(f"{self.gateway.admin_url}/admin/{path}", data, headers)
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return response.status, json.load(response)
            except urllib.error.HTTPError as error:
                return error.code, json.load(error)

        return await asyncio.to_thread(post)

    async def drain(self, at: str) -> Any:
        """Drain a server until it is empty; what is told of it then."""
        status, told = await self.order(f"replicas/{at}/drain")
        assert status == 200

        def empty() -> Any:
            _, body = self.gateway.get(f"/admin/replicas/{at}/drain", self.gateway.admin_url)
            return told if (told := json.loads(body))["empty"] else None

        return told if told["empty"] else await asyncio.to_thread(until, empty, 30)

    async def cli(self, *words: str) -> "subprocess.CompletedProcess[str]":
        run = [HOLDFAST, *words, "--config", self.gateway.config_file]
        return await asyncio.to_thread(subprocess.run, run, cwd=ROOT, capture_output=True, text=True, check=False)


def marks(bodies: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Session and generation of each leg that has them."""
    found = [one["kv_transfer_params"] for one in bodies if "kv_transfer_params" in one]
    return [(one["holdfast_session"], one["holdfast_generation"]) for one in found]


def warmings(bodies: list[dict[str, Any]]) -> list[int]:
    """How long the prompts are that were only to be loaded."""
    return [len(one["prompt"]) for one in bodies if one.get("max_tokens") == 1 and "return_token_ids" not in one]


@pytest.fixture
def pair(start_gateway, tokenizer):
    """Make one; both servers have told of their store."""

    @asynccontextmanager
    async def make(store: dict[str, Any] | None = STORE, **more: Any) -> AsyncIterator[Pair]:
        options = {"pages": 0, "prefill_token_s": PREFILL_TOKEN_S, "tokens_per_s": RATE}
        with start_stub(**options) as first, start_stub(**options) as second:
            for one in (first, second):
                one.pages(store=store)
            said: dict[str, Any] = {"timeouts": HURRIED, "integrity": {"ask_every_s": 0.2}} | more
            gateway = start_gateway([first.url, second.url], standby=False, tokenizer=tokenizer, **said)
            two = Pair(gateway, {name(one): one for one in (first, second)}, gateway.key("somebody"))
            known = "told" if store is None else "store"
            await asyncio.to_thread(
                until, lambda: all((two.told(at)["pages"].get(known) if store else True) for at in two.stubs)
            )
            await asyncio.to_thread(until, lambda: all(two.told(at)["pages"]["plugin"] == "told" for at in two.stubs))
            yield two

    return make


async def test_servers_with_a_page_store_are_told_whose_pages_they_write_and_nothing_else_is(pair):
    """An opaque name and a generation, the same from turn to turn; another session's are others; else there is none."""
    async with pair() as two:
        seen = [await two.turn(session, max_tokens=2) for session in ("s1", "s1", "s2")]
        alone = await ask(two.gateway, two.key, chat("hello", max_tokens=2))
        one_off = await ask(two.gateway, two.key, plain("hello", max_tokens=2), x_session_id="s1")
        places = [str(header(one, "x-holdfast-replica")) for one in seen]
        said = marks([body for at in two.stubs for body in two.asked(at)])

    assert places[0] == places[1]
    assert (alone.status, one_off.status) == (200, 200)
    assert len(said) == 4
    first = [mark for mark in said if [one[0] for one in said].count(mark[0]) == 3]
    assert len(set(first)) == 1  # name and generation
    assert len({one for one, _ in said}) == 2
    for session, generation in said:
        assert NAME.fullmatch(session)
        assert generation > 1_500_000_000_000
        for secret in (two.key, id_of(two.key), "s1", "s2"):
            assert secret not in session
            assert hashlib.sha256(secret.encode()).hexdigest()[: len(session)] != session


async def test_servers_without_a_page_store_are_told_nothing(pair):
    """Not even that there is a session."""
    async with pair(store=None) as two:
        await two.turn("s1", max_tokens=2)
        bodies = [body for at in two.stubs for body in two.asked(at)]

    assert len(bodies) == 1
    assert marks(bodies) == []


async def test_the_next_turn_of_a_session_whose_server_is_gone_is_said_to_come_from_there(pair):
    """Of a newer generation under the same name; how much of its prompt was found is told, and counted."""
    async with pair() as two:
        at = str(header(await two.turn("s1", LONG, max_tokens=2), "x-holdfast-replica"))
        await asyncio.to_thread(two.stubs[at].kill)
        await asyncio.to_thread(until, lambda: two.told(at)["state"] == "down")
        seen, again = [await two.turn("s1", LONG, max_tokens=2) for _ in range(2)]
        settled = [two.gateway.settled(request_id(one)) for one in (seen, again)]
        (moved,) = two.facts("session.moved")
        counted = {
            kind: two.gateway.metric("holdfast_session_tokens_total", kind=kind) for kind in ("cached", "computed")
        }
        moves = two.gateway.metric("holdfast_session_moves_total", reason="turn")
        said = marks(two.asked(two.other(at)))

    there = two.other(at)
    assert [header(one, "x-holdfast-replica") for one in (seen, again)] == [there, there]
    assert (moved["from"], moved["to"], moved["why"], moved["same_model"]) == (at, there, "turn", True)
    assert moved["session"] == "s1"
    assert {one for one in said} == {(said[0][0], moved["generation"])}
    assert [one.get("came_from") for one in settled] == [at, None]
    assert counted["computed"] == settled[0]["prompt_tokens"] - counted["cached"]
    assert (counted["cached"], moves) == (0, 1)  # the stub's other server has nothing
    assert settled[1]["cached_tokens"] > 1000


async def test_a_drained_server_has_what_its_streams_need_loaded_elsewhere_before_they_go(pair):
    """One token is asked for with all ids so far; then the leg is cut, and next to nothing is computed in the pause."""
    async with pair() as two:
        idle = [await two.turn(f"idle-{number}", max_tokens=2) for number in range(6)]
        body = chat(LONG + order(tokens=TOKENS))
        running, at = await two.begin("s1", body)
        there = two.other(at)
        living = [header(one, "x-holdfast-replica") for one in idle].count(at)
        told = await two.drain(at)
        seen = await running
        whole = await undisturbed(two.stubs[at], body)
        again = [await two.turn(f"idle-{number}", max_tokens=2) for number in range(6)]
        later = [str(header(one, "x-holdfast-replica")) for one in again]
        settled = two.gateway.settled(request_id(seen))
        await asyncio.to_thread(until, lambda: not two.told(at)["sessions"])
        shown = two.told(at)
        asked = [one for one in two.asked(there) if isinstance(one.get("prompt"), list)]
        warmed = two.gateway.metric("holdfast_tokens_total", kind="warmed")
        legs = two.facts("leg.ended")
        charged = two.gateway.paid(two.key).spent

    ahead, (resumed,) = warmings(asked), [one for one in asked if one.get("return_token_ids")]
    assert (told["moved"], told["left"], told["empty"], told["sessions"] >= living) == (1, {}, True, True)
    assert ids_of(seen) == ids_of(whole)
    assert ahead
    assert warmed == sum(ahead)
    assert len(resumed["prompt"]) >= ahead[-1]
    assert settled["restored_tokens"] > 1000
    assert settled["recomputed_tokens"] + settled["restored_tokens"] == len(resumed["prompt"])
    assert settled["recomputed_tokens"] < 200
    assert [(one["cause"], one["lost"]) for one in legs] == [("moved", False)]
    assert set(later) == {there}
    assert (shown["state"], shown["ready"], shown["sessions"]) == ("drained", False, 0)
    assert set(told["pause_ms"]) == {"p50", "p99", "most"}
    answers = [settled, *(two.gateway.settled(request_id(one)) for one in (*idle, *again))]
    assert charged == sum(one["charged_tokens"] for one in answers)
    assert settled["charged_tokens"] == settled["prompt_tokens"] + settled["completion_tokens"]


async def test_a_server_stays_drained_over_a_restart_of_the_gateway(pair):
    """Until it is undrained; then that lasts as well."""
    async with pair() as two:
        at = next(iter(two.stubs))
        await two.drain(at)
        two.gateway.stop()
        await asyncio.to_thread(two.gateway.restart)
        before = await asyncio.to_thread(until, lambda: two.told(at)["state"] == "drained")
        where = [str(header(await two.turn(f"s{number}", max_tokens=2), "x-holdfast-replica")) for number in range(6)]
        undone = await two.order(f"replicas/{at}/undrain")
        two.gateway.stop()
        await asyncio.to_thread(two.gateway.restart)
        after = two.told(at)["drained"]

    assert before
    assert set(where) == {two.other(at)}
    assert undone == (200, {"replica": at, "undrained": True})
    assert after is None


async def test_a_session_is_moved_by_name_with_all_that_runs_of_it(pair):
    """Its stream goes on there exactly, its next turn goes there; what happened is said."""
    async with pair() as two:
        body = chat(LONG + order(tokens=TOKENS))
        running, at = await two.begin("s1", body)
        there = two.other(at)
        status, told = await two.order("sessions/s1/move", to=there)
        seen = await running
        whole = await undisturbed(two.stubs[at], body)
        later = await two.turn("s1", max_tokens=2)
        again = await two.cli("move", "s1", "--to", there)
        (moved,) = two.facts("session.moved")
        moves = two.gateway.metric("holdfast_moves_total", reason="move")

    assert (status, told["to"], told["from"], told["streams"], told["moved"]) == (200, there, [at], 1, 1)
    assert told["key_id"] == id_of(two.key)
    assert told["pause_ms"]["most"] > 0
    assert ids_of(seen) == ids_of(whole)
    assert header(later, "x-holdfast-replica") == there
    assert (moved["from"], moved["to"], moved["why"]) == (at, there, "move")
    assert (again.returncode, again.stdout) == (0, f"s1: lives at {there} now\n")
    assert moves == 1


async def test_a_session_that_cannot_be_moved_is_refused_by_reason(pair):
    """Nobody knows it; several have one so named; there is no such replica; it is down; it is another model's."""
    async with pair() as two:
        at = str(header(await two.turn("s1", max_tokens=2), "x-holdfast-replica"))
        there = two.other(at)
        other_key = two.gateway.key("another")
        await ask(two.gateway, other_key, chat("hello", max_tokens=2), x_session_id="s1")
        several = await two.order("sessions/s1/move", to=there)
        mine = await two.order("sessions/s1/move", to=at, key_id=id_of(two.key))
        by_user = await two.order("sessions/s1/move", to=at, user="another")
        nobody = await two.cli("move", "s9", "--to", there)
        nowhere = await two.order("sessions/s1/move", to="nowhere", user="somebody")
        odd = await two.order("sessions/s1/move", towards=there)
        two.stubs[there].pages(store=STORE, fingerprint="0" * 64)
        await asyncio.to_thread(until, lambda: two.told(there)["pages"]["fingerprints"] == ["0" * 64])
        unlike = await two.order("sessions/s1/move", to=there, user="somebody")
        two.stubs[there].pages(store=STORE)
        await asyncio.to_thread(until, lambda: two.told(there)["pages"]["fingerprints"] != ["0" * 64])
        await asyncio.to_thread(two.stubs[there].kill)
        await asyncio.to_thread(until, lambda: two.told(there)["state"] == "down")
        down = await two.order("sessions/s1/move", to=there, user="somebody")
        drained = [await two.order(f"replicas/{at}/drain"), await two.order("sessions/s1/move", to=at, user="another")]

    assert several[0] == 409
    for one in (id_of(two.key), id_of(other_key)):
        assert one in several[1]["error"]["message"]
    assert (mine[0], by_user[0]) == (200, 200)
    assert (nobody.returncode, "404" in nobody.stderr, "No such session" in nobody.stderr) == (1, True, True)
    assert (nowhere[0], "no replica of that name" in nowhere[1]["error"]["message"]) == (404, True)
    assert (odd[0], odd[1]["error"]["param"]) == (400, "towards")
    assert (unlike[0], "other weights, configuration or layout" in unlike[1]["error"]["message"]) == (409, True)
    assert (down[0], f"{there} is down" in down[1]["error"]["message"]) == (409, True)
    assert (drained[1][0], f"{at} is drained" in drained[1][1]["error"]["message"]) == (409, True)


async def test_sessions_of_a_tier_are_kept_loaded_at_a_second_server_which_takes_over(pair):
    """At the end of a turn, and while a stream is long; when its server dies the stream goes on there, at once."""
    tiers = [{"name": "default", "hot_standby": {"every_tokens": 32, "every_s": 0.25}}]
    async with pair(tiers=tiers) as two:
        first = await two.turn("s1", LONG, max_tokens=8)
        at = str(header(first, "x-holdfast-replica"))
        there = two.other(at)
        await asyncio.to_thread(until, lambda: warmings(two.asked(there)))
        total = two.gateway.settled(request_id(first))
        tokens = total["prompt_tokens"] + total["completion_tokens"]
        await asyncio.to_thread(until, lambda: warmings(two.asked(there))[-1] == tokens)
        at_end = warmings(two.asked(there))
        body = chat(LONG + order(tokens=TOKENS))
        running = asyncio.create_task(ask(two.gateway, two.key, body, x_session_id="s1"))
        await asyncio.to_thread(until, lambda: len(warmings(two.asked(there))) >= len(at_end) + 2)
        shown = [(two.told(one)["sessions"], two.told(one)["hot_sessions"]) for one in (at, there)]
        await asyncio.to_thread(two.stubs[at].kill)
        seen = await running
        whole = await undisturbed(two.stubs[there], body)
        settled = two.gateway.settled(request_id(seen))
        loaded = two.gateway.metric("holdfast_warmings_total", replica=there, outcome="loaded")
        spent = two.gateway.paid(two.key).spent

    assert shown == [(1, 0), (0, 1)]
    assert ids_of(seen) == ids_of(whole)
    assert settled["failovers"] == 1
    assert settled["restored_tokens"] > 1000
    assert loaded >= 3
    assert spent == total["charged_tokens"] + settled["charged_tokens"]


async def test_nothing_is_loaded_at_a_server_that_is_overloaded(pair):
    """Requests wait there for want of room: the drain goes on without."""
    async with pair() as two:
        running, at = await two.begin("s1", chat(LONG + order(tokens=TOKENS)))
        there = two.other(at)
        two.stubs[there].gauges(num_requests_waiting=30)
        await asyncio.to_thread(until, lambda: two.told(there)["waiting"] == 30)
        told = await two.drain(at)
        seen = await running
        busy = two.gateway.metric("holdfast_warmings_total", replica=there, outcome="busy")
        ahead = warmings(two.asked(there))

    assert told["moved"] == 1
    assert (seen.ended, seen.done) == ("clean", True)
    assert busy > 0
    assert ahead == []


async def test_a_server_that_lost_a_race_is_of_an_older_generation_than_the_one_that_won(pair):
    """So it writes no more pages for the session, should it come back; and its late tokens reach nobody."""
    async with pair(timeouts=HURRIED | {"suspect_s": 1.0}) as two:
        body = chat(LONG + order(tokens=TOKENS))
        running, at = await two.begin("s1", body)
        there = two.other(at)
        two.stubs[at].freeze_engine()
        await asyncio.to_thread(until, lambda: two.tokens(there) > 5)
        two.stubs[at].thaw_engine()  # its late tokens come while the other one's do
        seen = await running
        whole = await undisturbed(two.stubs[there], body)
        old, new = marks(two.asked(at)), marks(two.asked(there))
        moved = two.facts("session.moved")

    assert ids_of(seen) == ids_of(whole)
    assert (len(old), len(new)) == (1, 1)
    assert old[0][0] == new[0][0]
    assert new[0][1] > old[0][1]
    assert [(one["from"], one["to"], one["why"]) for one in moved] == [(at, there, "race")]
