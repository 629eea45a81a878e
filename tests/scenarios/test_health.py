"""Servers that are slow, flap, fail what they are sent, or forget it; and requests that any server fails."""

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from loadtests.processes import StubProcess, start_stub
from tests.loadtests.raw_client import Seen
from tests.processes import HOLDFAST, ROOT, Gateway, until
from tests.scenarios.asking import ask, chat, error, header, order, plain

pytestmark = pytest.mark.slow

HURRIED = {"suspect_s": 1.0, "canary_s": 0.5, "probe_s": 0.5, "probe_every_s": 0.25}
ANYWHERE = {"sessions": False, "prefixes": False}  # prompts are alike here, and would all go to one server
RATE = 50  # tokens per second and stream
SLOWNESS = 8
FOUND_S_MAX = 6.0  # a slow engine: five rounds of probes, 1.25 s here, 5 s by default; others work on this machine too
OUT_S_MAX = 3.0  # a server that fails everything, under load
OPEN_S = 1.5
CALLS = 20  # of the default plan
PAGES = 11  # one more than the default plan lets be corrupt
ASKED = {"integrity": {"ask_every_s": 0.2}}


@dataclass
class Two:
    """A gateway and two active servers of its own."""

    gateway: Gateway
    left: StubProcess
    right: StubProcess
    key: str

    async def asked(self, *bodies: dict[str, Any]) -> list[Seen]:
        """Ask all at once, to their ends."""
        return list(await asyncio.gather(*(ask(self.gateway, self.key, body) for body in bodies)))

    async def told(self, stub: StubProcess) -> dict[str, Any]:
        """What the admin port says of a server."""
        _, body = await asyncio.to_thread(self.gateway.get, "/admin/replicas", self.gateway.admin_url)
        return next(one for one in json.loads(body)["replicas"] if one["replica"] == name(stub))

    async def until(self, stub: StubProcess, look: Callable[[dict[str, Any]], Any], seconds: float = 10.0) -> float:
        """Wait until that is so; answer how long it took, in seconds."""
        begun_s = time.monotonic()
        while not look(await self.told(stub)):
            assert time.monotonic() < begun_s + seconds, f"waited in vain; {await self.told(stub)}"
            await asyncio.sleep(0.02)
        return time.monotonic() - begun_s

    def facts(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.gateway.journal() if one["kind"] == kind]


def name(stub: StubProcess) -> str:
    return stub.url.removeprefix("http://")


def servers(answers: list[Seen]) -> list[str | None]:
    return [header(one, "x-holdfast-replica") for one in answers]


def breaker(told: dict[str, Any]) -> str:
    """The state of a server's one breaker."""
    (one,) = told["breakers"]
    return str(one["state"])


Twos = Callable[..., Any]


@pytest.fixture
def twos(start_gateway, tokenizer) -> Twos:
    """Make them: `async with twos(health={"breaker_open_s": 1}) as two`. pages: see the stub's command line."""

    @asynccontextmanager
    async def make(pages: int | None = None, **more: Any) -> AsyncIterator[Two]:
        stub = {"tokens_per_s": RATE, "pages": pages}
        with start_stub(**stub) as left, start_stub(**stub) as right:
            options = {"tokenizer": tokenizer, "standby": False, "timeouts": HURRIED, "routing": ANYWHERE} | more
            gateway = start_gateway([left.url, right.url], **options)
            yield Two(gateway, left, right, gateway.key("somebody"))

    return make


async def test_a_slow_engine_is_found_and_routed_around(twos):
    """It answers all it is asked, at an eighth of the pace: within seconds others get more, and nobody is ejected."""
    async with twos() as two:
        load = [asyncio.create_task(two.asked(chat(order(tokens=500)))) for _ in range(8)]
        await asyncio.sleep(1.0)
        before = await two.told(two.left)
        await asyncio.to_thread(two.left.slow, SLOWNESS)

        took_s = await two.until(two.left, lambda told: told["worse"], FOUND_S_MAX)
        answers = await two.asked(*(chat(order(tokens=2)) for _ in range(4)))
        slow, well = await two.told(two.left), await two.told(two.right)
        for one in load:
            one.cancel()

    assert (before["worse"], before["weight"]) == ([], 1.0)
    assert took_s < FOUND_S_MAX
    assert servers(answers) == [name(two.right)] * 4
    assert (slow["state"], well["state"], well["worse"]) == ("up", "up", [])
    assert slow["weight"] < 0.3
    assert slow["worse"][0].startswith("its gaps between tokens are 0.")
    assert [(one["replica"], one["weight"] < 0.5) for one in two.facts("replica.compared")] == [(name(two.left), True)]


async def test_what_servers_say_of_themselves_is_seen_everywhere(twos):
    """By the admin port, the command line and the metrics; one with a long queue beside an empty one gets less."""
    async with twos() as two:
        said = {"num_requests_waiting": 40, "kv_cache_usage_perc": 0.97, "num_preemptions_total": 12}
        await asyncio.to_thread(two.left.gauges, **said)
        await two.until(two.left, lambda told: told["waiting"] == 40 and told["worse"])
        answers = [*await two.asked(chat(order(tokens=2))), *await two.asked(chat(order(tokens=2)))]
        told = await two.told(two.left)
        run = [HOLDFAST, "replicas", "--config", two.gateway.config_file]
        table = await asyncio.to_thread(subprocess.run, run, cwd=ROOT, capture_output=True, text=True, check=True)
        as_json = await asyncio.to_thread(subprocess.run, [*run, "--json"], cwd=ROOT, capture_output=True, check=True)
        metric = {
            one: two.gateway.metric(f"holdfast_replica_{one}", replica=name(two.left))
            for one in ("waiting", "kv_usage", "preemptions", "weight")
        }
        unknown = two.gateway.get("/admin/replicas?limit=1", two.gateway.admin_url)[0]

    assert (told["kv_used"], told["preemptions"], told["weight"]) == (0.97, 12, 0.125)
    assert told["worse"] == [
        "40 requests wait there, at the others 0", "its KV cache is 97% full, the others' 0%"
    ]  # fmt: skip
    assert servers(answers) == [name(two.right)] * 2
    assert metric == {"waiting": 40, "kv_usage": 0.97, "preemptions": 12, "weight": 0.125}
    assert "40 requests wait there" in " ".join(table.stdout.split())
    assert [one["replica"] for one in json.loads(as_json.stdout)["replicas"]] == [name(two.left), name(two.right)]
    assert unknown == 400


async def test_a_replica_that_flaps_waits_longer_each_time(twos):
    """The first return is trusted at once, the next one later, the third one later still; and it is back in the end."""
    async with twos(health={"flap_wait_s": 1.0}) as two:
        waits = []
        for _ in range(3):
            await asyncio.to_thread(two.left.health, 503)
            await two.until(two.left, lambda told: told["state"] == "down")
            await asyncio.to_thread(two.left.health, 200)
            await two.until(two.left, lambda told: told["state"] != "down")
            told = await two.told(two.left)
            waits.append(told["trusted_in_s"])
        answers = await two.asked(*(chat(order(tokens=20)) for _ in range(4)))
        backing_off, metric = told["state"], two.gateway.metric("holdfast_replica_backing_off")
        await two.until(two.left, lambda told: told["state"] == "up")
        later = await two.asked(*(chat(order(tokens=20)) for _ in range(4)))

    assert waits[0] == 0
    assert 0 < waits[1] <= 1.0 < waits[2] <= 2.0
    assert (backing_off, told["flaps"], metric) == ("backing off", 2, 1)
    assert servers(answers) == [name(two.right)] * 4
    assert name(two.left) in servers(later)
    assert [one["up"] for one in two.facts("replica.judged") if one["replica"] == name(two.left)][-6:] == [
        False, True,
    ] * 3  # fmt: skip


@pytest.mark.parametrize("kind", [chat, plain])
async def test_poison_gets_a_clean_error_and_harms_no_server(twos, kind):
    """What any server answers with 500, many times over: no server is ejected and no breaker opens."""
    async with twos() as two:
        poison = [kind(f"number {number} " + order(fault="status", status=500)) for number in range(3 * CALLS)]
        refused = await two.asked(*poison)
        fine = await two.asked(*(kind(order(tokens=3)) for _ in range(4)))
        told = [await two.told(two.left), await two.told(two.right)]
        turns = two.gateway.metric("holdfast_replica_breaker_turns_total")

    assert {(one.status, error(one)["code"]) for one in refused} == {(502, "upstream_error")}
    assert [one.status for one in fine] == [200] * 4
    assert turns == 0
    assert [(one["state"], breaker(one), one["breakers"][0]["failed"]) for one in told] == [("up", "closed", 0)] * 2
    assert two.facts("replica.breaker") == []


async def test_a_server_that_fails_everything_is_taken_out_and_comes_back_after_one_probe(twos):
    """Clients notice nothing: twenty calls open its breaker, one probe at a time is sent, an answered one closes it.

    Its /health is 200 all the while.
    """
    async with twos(health={"breaker_open_s": OPEN_S, "breaker_open_s_max": OPEN_S}) as two:
        await asyncio.to_thread(two.left.arm, "status", 10_000, status=500)
        begun_s, answers = time.monotonic(), []
        while breaker_of(await two.told(two.left)) != "open":
            answers += await two.asked(*(chat(order(tokens=2)) for _ in range(10)))
            assert time.monotonic() < begun_s + OUT_S_MAX
        took_s = time.monotonic() - begun_s
        count = (await asyncio.to_thread(two.left.stats))["requests"]
        answers += await two.asked(*(chat(order(tokens=2)) for _ in range(20)))
        none = (await asyncio.to_thread(two.left.stats))["requests"] - count
        await two.until(two.left, lambda told: breaker(told) == "half-open")
        answers += await two.asked(*(chat(order(tokens=2)) for _ in range(20)))
        one = (await asyncio.to_thread(two.left.stats))["requests"] - count
        still = breaker(await two.told(two.left))
        await asyncio.to_thread(two.left.arm, None)
        await two.until(two.left, lambda told: breaker(told) == "half-open")
        probe = await two.asked(chat(order(tokens=2)))
        back = breaker(await two.told(two.left))
        later = await two.asked(*(chat(order(tokens=20)) for _ in range(4)))
        told = await two.told(two.left)

    assert {seen.status for seen in answers} == {200}
    assert took_s < OUT_S_MAX
    assert (none, one, still) == (0, 1, "open")
    assert (servers(probe), back) == ([name(two.left)], "closed")
    assert name(two.left) in servers(later)
    assert told["state"] == "up"
    states = [fact["state"] for fact in two.facts("replica.breaker")]
    assert states == ["open", "half-open", "open", "half-open", "closed"]


def breaker_of(told: dict[str, Any]) -> str | None:
    """The same; None before its first request."""
    return breaker(told) if told["breakers"] else None


async def test_a_model_with_one_server_is_served_whatever_became_of_it(twos):
    """The last one is never left alone: neither by its breaker, nor for flapping."""
    async with twos() as two:
        await asyncio.to_thread(two.right.health, 503)
        await two.until(two.right, lambda told: told["state"] == "down")
        await asyncio.to_thread(two.left.arm, "status", 4 * 3 * CALLS, status=500)
        refused = await two.asked(*(chat(f"number {n} " + order(tokens=2)) for n in range(2 * CALLS)))
        await asyncio.to_thread(two.left.arm, None)
        (served,) = await two.asked(chat(order(tokens=2)))
        ready = await asyncio.to_thread(two.gateway.get, "/readyz")

    assert {one.status for one in refused} == {502}
    assert (served.status, servers([served]), ready[0]) == (200, [name(two.left)], 200)
    until(lambda: two.gateway.metric("holdfast_requests_in_flight") == 0)


def shown(gateway: Gateway, *options: str) -> str:
    """What `holdfast replicas` prints."""
    run = [HOLDFAST, "replicas", "--config", gateway.config_file, *options]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout


async def test_a_server_whose_pages_go_bad_is_drained_until_it_is_started_anew(twos):
    """Its running stream ends well, new requests go elsewhere, everybody is told; a new engine is trusted."""
    async with twos(pages=0, **ASKED) as two:
        await asyncio.to_thread(two.right.pages, fingerprint="77aa0011" * 8)
        await two.until(two.left, lambda told: told["pages"]["plugin"] == "told")
        await two.until(two.right, lambda told: (told["pages"]["fingerprints"] or [""])[0].startswith("77"))
        running = [asyncio.create_task(two.asked(chat(order(tokens=150)))) for _ in range(2)]
        await two.until(two.left, lambda told: told["streams"] == 1)

        await asyncio.to_thread(two.left.pages, ("changed", "gate", PAGES))
        await two.until(two.left, lambda told: told["state"] == "drained")
        streams = (await two.told(two.left))["streams"]
        later = await two.asked(*(chat(order(tokens=2)) for _ in range(6)))
        table = await asyncio.to_thread(shown, two.gateway)
        told = await two.told(two.left)
        metrics = [two.gateway.metric(f"holdfast_replica_{one}", replica=name(two.left)) for one in (
            "drained", "up", "protected", "corrupt_pages", "corrupt_pages_lately")]  # fmt: skip
        ended = [one for answers in await asyncio.gather(*running) for one in answers]
        await asyncio.to_thread(two.left.stop)
        await two.until(two.left, lambda told: told["state"] == "down")
        with start_stub(tokens_per_s=RATE, port=two.left.port, pages=0):
            await two.until(two.left, lambda told: told["state"] == "up")
            back = await two.asked(*(chat(order(tokens=20)) for _ in range(4)))

    assert streams == 1
    assert [one.finish for one in ended] == ["stop"] * 2
    assert [one.ids for one in ended] == [ended[0].ids] * 2
    assert sorted(servers(ended)) == sorted([name(two.left), name(two.right)])
    assert servers(later) == [name(two.right)] * 6
    assert (told["drained"], told["pages"]["corrupt_lately"]) == (f"{PAGES} corrupt pages in 600 s", PAGES)
    assert metrics == [1, 1, 1, PAGES, PAGES]
    for said in ("drained", f"{PAGES} corrupt pages in 600 s", "3fa9c1d2", "77aa0011", "1.2 s", "--undrain",
                 f"differ: {name(two.left)} 3fa9c1d2, {name(two.right)} 77aa0011"):  # fmt: skip
        assert said in " ".join(table.split())
    assert name(two.left) in servers(back)
    facts = [(one["replica"], one["drained"], one["why"]) for one in two.facts("replica.drained")]
    assert facts == [
        (name(two.left), True, f"{PAGES} corrupt pages in 600 s"),
        (name(two.left), False, "its engine was started anew"),
    ]


async def test_a_model_whose_servers_are_all_drained_is_served_and_an_operator_brings_them_back(twos):
    """Nothing takes out the last ones. By the command line one of them is sound again, and gets everything."""
    async with twos(pages=0, **ASKED) as two:
        for stub in (two.left, two.right):
            await two.until(stub, lambda told: told["pages"]["plugin"] == "told")
        for stub in (two.left, two.right):
            await asyncio.to_thread(stub.pages, ("changed", "scrub", PAGES))
            await two.until(stub, lambda told: told["state"] == "drained")
        served = await two.asked(*(chat(order(tokens=20)) for _ in range(4)))
        ready = await asyncio.to_thread(two.gateway.get, "/readyz")
        said = await asyncio.to_thread(shown, two.gateway, "--undrain", name(two.left))
        again = await asyncio.to_thread(shown, two.gateway, "--undrain", name(two.left))
        later = await two.asked(*(chat(order(tokens=2)) for _ in range(4)))
        with pytest.raises(subprocess.CalledProcessError) as unknown:
            await asyncio.to_thread(shown, two.gateway, "--undrain", "nobody")

    assert [one.status for one in served] == [200] * 4
    assert ready[0] == 200
    assert said == f"{name(two.left)} gets requests again\n"
    assert again == f"{name(two.left)} was not drained\n"
    assert servers(later) == [name(two.left)] * 4
    assert "no replica of that name" in unknown.value.stderr


async def test_servers_without_the_plugin_or_with_nonsense_for_a_status_are_served_as_ever(twos):
    """The one is shown as none, the other as unreadable."""
    async with twos(pages=0, **ASKED) as two:
        await asyncio.to_thread(two.left.no_pages)
        await asyncio.to_thread(two.right.pages, protected="perhaps")
        await two.until(two.left, lambda told: told["pages"]["plugin"] == "none")
        await two.until(two.right, lambda told: told["pages"]["plugin"] == "unreadable")
        answers = await two.asked(*(chat(order(tokens=20)) for _ in range(4)))
        states = [(await two.told(stub))["state"] for stub in (two.left, two.right)]

    assert {one.status for one in answers} == {200}
    assert set(servers(answers)) == {name(two.left), name(two.right)}
    assert states == ["up", "up"]


async def test_a_server_with_a_key_is_asked_with_it(start_gateway):
    """As for all of its API."""
    with start_stub(key="sesame", pages=0) as stub:
        replicas = [{"url": stub.url, "key": "sesame"}]
        gateway = start_gateway([stub.url], of_model={"replicas": replicas}, **ASKED)
        two = Two(gateway, stub, stub, gateway.key("somebody"))
        await two.until(stub, lambda told: told["pages"]["plugin"] == "told")

    assert "sesame" not in gateway.log()
