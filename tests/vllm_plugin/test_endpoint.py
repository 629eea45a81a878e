"""The plugin's two routes, over engines of this file."""

import asyncio
import subprocess
import sys
from argparse import Namespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from vllm_plugin import compat, endpoint
from vllm_plugin.endpoint import Engines, HoldfastEndpoint, Keys, Refused
from vllm_plugin.refusals import Facts
from vllm_plugin.settings import Settings
from vllm_plugin.status import of_scheduler, of_worker

KEY = {"authorization": "Bearer two"}
STATUS = {"scheduler": of_scheduler(Settings(), Facts(), b"m", {}), "workers": [of_worker(3, 0.5, {})]}


class FakeClient:
    """vLLM's, of engines with so many workers each, which have so many pages; `slice_` are looked at at a time."""

    def __init__(self, *workers: list[int], slice_: int = 10, connector: str = "HoldfastConnector") -> None:
        self.left, self.slice, self.asked = [list(pages) for pages in workers], slice_, []
        self.engine_core = self
        transfer = Namespace(kv_connector=connector, kv_connector_extra_config={})
        self.vllm_config = Namespace(kv_transfer_config=transfer)

    async def call_utility_all_async(self, method: str, *args: object) -> list:
        self.asked.append((method, *args))
        if method == compat.STATUS:
            return [STATUS] * len(self.left)
        return [[self._scrubbed(pages, number) for number in range(len(pages))] for pages in self.left]

    def _scrubbed(self, pages: list[int], number: int) -> list[int]:
        checked = min(self.slice, pages[number])
        pages[number] -= checked
        return [checked, 1 if checked else 0, pages[number]]


def server(client: FakeClient | None, *keys: str) -> TestClient:
    """As vLLM builds it."""
    plugin, app = HoldfastEndpoint(), FastAPI()
    app.state.args = Namespace(api_key=list(keys) or None)
    plugin.attach_router(app)
    asyncio.run(plugin.init_state(client, app.state, app.state.args))
    return TestClient(app)


@pytest.fixture(autouse=True)
def _no_key_from_outside(monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def test_a_status_is_put_together_of_all_engines():
    """Each is asked once."""
    client = FakeClient([3], [3])
    answer = server(client).get("/holdfast/status")

    assert answer.status_code == 200
    assert answer.json()["pages"]["resident"] == 6
    assert client.asked == [("holdfast_status",)]


def test_a_scrub_looks_at_all_pages_a_slice_after_the_other():
    """Between two slices an engine takes its steps. All slices of one scrub have its name."""
    client = FakeClient([25, 25], [5])
    found = server(client).post("/holdfast/scrub").json()

    assert (found["checked"], found["corrupt"], found["whole"]) == (55, 7, True)
    assert found["seconds"] > 0
    assert len(client.asked) == 3
    assert len({name for _, name, _ in client.asked}) == 1
    assert {slice_s for _, _, slice_s in client.asked} == {endpoint.SLICE_S}


def test_a_scrub_has_an_end_and_says_when_it_is_not_whole(monkeypatch):
    """Whatever is left then."""
    monkeypatch.setattr(endpoint, "SCRUB_S_MAX", 3.0)
    client, seconds = FakeClient([10**9]), iter(range(100))
    engines = Engines(client.call_utility_all_async, clock=lambda: next(seconds))
    found = asyncio.run(engines.scrub())

    assert (found["whole"], found["checked"]) == (False, 20)


@pytest.mark.parametrize(("method", "path"), [("GET", "/holdfast/status"), ("POST", "/holdfast/scrub")])
@pytest.mark.parametrize("sent", [
    {}, {"authorization": ""}, {"authorization": "Bearer"}, {"authorization": "Bearer "},
    {"authorization": "Bearer tw"}, {"authorization": "Bearer twoo"}, {"authorization": "Basic two"},
    {"authorization": "two"}, {"x-api-key": "two"},
])  # fmt: skip
def test_nobody_without_a_key_is_answered(method, path, sent):
    """Nor is an engine asked."""
    client = FakeClient([3])
    answer = server(client, "one", "two").request(method, path, headers=sent)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert client.asked == []


@pytest.mark.parametrize("sent", ["Bearer one", "bearer two", "BEARER two"])
def test_each_key_of_the_server_is_good(sent):
    """As for vLLM's own routes."""
    assert server(FakeClient([3]), "one", "two").get("/holdfast/status", headers={"authorization": sent}).is_success


def test_keys_are_those_that_vllm_takes(monkeypatch):
    """The command line's before the environment's; empty ones are none."""
    def good(key: str, *given: str) -> bool:
        return Keys.of(Namespace(api_key=list(given) or None)).admit(f"Bearer {key}")

    assert good("anything")
    assert good("anything", "")
    monkeypatch.setenv("VLLM_API_KEY", "environment's")
    assert good("environment's")
    assert not good("anything")
    assert good("given", "given")
    assert not good("environment's", "given")
    monkeypatch.setenv("VLLM_API_KEY", "")
    assert good("anything")


@pytest.mark.parametrize(("method", "path", "allowed"), [
    ("GET", "/holdfast/scrub", "POST"), ("DELETE", "/holdfast/scrub", "POST"), ("POST", "/holdfast/status", "GET"),
])  # fmt: skip
def test_each_route_has_one_method(method, path, allowed):
    """A link that somebody follows scrubs nothing."""
    client = FakeClient([3])
    answer = server(client).request(method, path)

    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert client.asked == []


@pytest.mark.parametrize("client", [None, FakeClient([3], connector="AnotherConnector")])
def test_where_no_page_is_guarded_that_is_said(client):
    """A server that renders prompts has no engine; another one may have other connectors."""
    answer = server(client).get("/holdfast/status")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "connector_absent")


def test_a_dead_engine_is_an_error_and_says_no_more_than_that():
    """What it failed with is in its log."""
    client = FakeClient([3])

    async def dead(method, *args):
        raise RuntimeError("secret path")

    client.call_utility_all_async = dead
    answer = server(client).get("/holdfast/status")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_failed")
    assert answer.headers["retry-after"] == "1"
    assert "secret" not in answer.text


class Silent:
    """An engine that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.speaks = asyncio.Event()

    async def __call__(self, method: str, *args: object) -> list:
        self.asked += 1
        await self.speaks.wait()
        return [STATUS] if method == compat.STATUS else [[[1, 0, 0]]]


async def refusal(asking) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        await asking
    return refused.value.status, refused.value.code


def test_a_silent_engine_is_given_up_and_not_asked_again_by_each(monkeypatch):
    """One open question, however many come; when it speaks again, all is well."""
    monkeypatch.setattr(endpoint, "ANSWER_S_MAX", 0.02)

    async def story() -> None:
        engine = Silent()
        engines = Engines(engine)
        for _ in range(3):
            assert await refusal(engines.status()) == (503, "engine_silent")
        assert engine.asked == 1
        both = asyncio.gather(engines.status(), engines.status())
        await asyncio.sleep(0)
        engine.speaks.set()
        assert all(found["pages"]["resident"] == 3 for found in await both)
        assert engine.asked == 1
        await engines.status()
        assert engine.asked == 2

    asyncio.run(story())


def test_a_scrub_never_takes_an_earlier_ones_answer_for_its_own(monkeypatch):
    """It was given up, and the engine has not answered it yet."""
    monkeypatch.setattr(endpoint, "ANSWER_S_MAX", 0.02)

    async def story() -> None:
        engine = Silent()
        engines = Engines(engine)
        assert await refusal(engines.scrub()) == (503, "engine_silent")
        second = asyncio.ensure_future(engines.scrub())
        await asyncio.sleep(0)
        engine.speaks.set()
        assert await refusal(second) == (503, "engine_silent")
        assert engine.asked == 1
        await asyncio.sleep(0)
        assert (await engines.scrub())["whole"]
        assert engine.asked == 2

    asyncio.run(story())


def test_one_scrub_at_a_time():
    """The second would look at what the first is looking at."""
    async def story() -> None:
        engine = Silent()
        engines = Engines(engine)
        first = asyncio.ensure_future(engines.scrub())
        await asyncio.sleep(0)
        assert await refusal(engines.scrub()) == (409, "scrub_running")
        engine.speaks.set()
        assert (await first)["checked"] == 1
        assert (await engines.scrub())["checked"] == 1

    asyncio.run(story())


def test_engines_of_an_older_client_are_asked_one_by_one():
    """It knows one."""
    class Older:
        async def call_utility_async(self, method: str, *args: object) -> object:
            return method, args

    found = asyncio.run(compat.ask(Namespace(engine_core=Older()), "holdfast_scrub", "name", 0.1))
    assert found == [("holdfast_scrub", ("name", 0.1))]


@pytest.mark.parametrize(("connector", "members", "is_there"), [
    ("HoldfastConnector", [], True), ("OffloadingConnector", [], False),
    ("MultiConnector", ["OffloadingConnector", "HoldfastConnector"], True), ("MultiConnector", ["Other"], False),
])  # fmt: skip
def test_the_connector_is_found_alone_and_among_others(connector, members, is_there):
    """Where there is none at all, too."""
    extra = {"connectors": [{"kv_connector": name} for name in members]}
    transfer = Namespace(kv_connector=connector, kv_connector_extra_config=extra)

    assert compat.has_connector(Namespace(kv_transfer_config=transfer)) is is_there
    assert not compat.has_connector(Namespace(kv_transfer_config=None))


def test_nothing_that_vllm_loads_brings_numba_or_vllm_before_its_time():
    """vLLM on the CPU looks through all modules when it starts, and falls over numba's."""
    code = "import sys, vllm_plugin.endpoint; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert "fastapi" in loaded
    assert {"numba", "llvmlite", "vllm", "torch", "triton"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    ("told", "said"),
    [({"temperature": 0.6, "top_k": 20}, {"temperature": 0.6, "top_k": 20}), ({}, {}), (OSError(), None), (None, None)],
)
def test_a_status_tells_the_defaults_of_sampling(told, said):
    """As vLLM has them; nothing where it does not tell, as in another version."""

    class Model:
        def get_diff_sampling_param(self):
            if isinstance(told, Exception):
                raise told
            return told

    client = FakeClient([3])
    client.vllm_config.model_config = Model() if told is not None else None

    assert server(client).get("/holdfast/status").json()["sampling_defaults"] == said
