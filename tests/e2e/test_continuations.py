"""A few cuts of each kind of request on a real vLLM with the plugin; `make prove` makes fifty of each."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from openai import APIError, AsyncOpenAI

from gateway.local.engine import Engine
from tests.e2e.conftest import Paged, Proxy
from tests.e2e.continuations import Requests, answer, features, known, run
from tests.e2e.kinds import CHAT, KINDS, chat
from tests.processes import TRUSTING, Gateway

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CUTS = 2
SOON = ("seeds", "JSON schema", "tools: auto", "reasoning", "logprobs")  # `make test` cuts these, `make prove` all
PATIENT = {"probe_s": 10.0}  # on a starved machine: a server that is thought to be down is asked for nothing


@dataclass
class House:
    """A server with the plugin, and a gateway to which it is two: one is behind a proxy. tried: kinds, so far."""

    engine: Engine
    gateway: Gateway
    requests: Requests
    key: str
    proxy: Proxy
    tried: int = 0


@pytest.fixture(scope="module")
def house(paged: Paged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Most of what was tried was cut: on a starved machine a stream's last events come in one, but not all streams'."""
    engine, _ = paged.fleet()
    proxy = Proxy(engine)
    more = {"integrity": {"ask_every_s": 0.5}, "health": TRUSTING, "timeouts": PATIENT}
    folder = tmp_path_factory.mktemp("continuing")
    with Gateway(folder, [proxy.url, engine.url], model="tiny", **more) as gateway:
        known(gateway)
        requests = Requests(2027, ways=("fin",))
        proxy.plan(requests.plan)
        house = House(engine, gateway, requests, gateway.keys_create("e2e", "100M"), proxy)
        yield house
        assert proxy.cuts >= house.tried
        assert gateway.metric("holdfast_continued_total", by="replay") >= house.tried / 2
        assert gateway.metric("holdfast_continued_total", by="ids") == 0
        assert gateway.faults() == []
    proxy.stop()


@pytest.mark.parametrize(
    "kind", [kind if kind in SOON else pytest.param(kind, marks=pytest.mark.prove) for kind in KINDS]
)
async def test_a_kind_goes_on_exactly_as_the_official_sdk_has_it(house: House, kind: str) -> None:
    """All that it parses of a stream that was cut, logprobs and usage among it, is what it parses of an uncut one."""
    house.tried += 1
    tally = await run(house.engine.url, house.gateway.url, house.requests, KINDS[kind], CUTS, house.key, kind)

    assert tally.differing == []
    assert tally.equal == tally.streams > 0


async def test_what_is_not_continued_ends_with_its_name(house: House) -> None:
    """The plugin says what it refuses, and the gateway says so to the client."""
    house.requests.lengths["refused"] = 40
    async with AsyncOpenAI(base_url=house.gateway.url + "/v1", api_key=house.key, max_retries=0) as client:
        with pytest.raises(APIError, match="thinking_token_budget cannot be continued exactly"):
            await answer(client, CHAT, chat(seed=3, temperature=0.8, thinking_token_budget=9, user="refused/0"))


async def test_the_kinds_are_what_they_are_called(house: House) -> None:
    """Tools are called, thoughts are thought: else their parsers would have had nothing to do."""
    async with AsyncOpenAI(base_url=house.engine.url + "/v1", api_key="-", max_retries=0) as client:
        names = ("tools: named, required", "tools: auto", "reasoning", "JSON schema")
        whole = await asyncio.gather(*(answer(client, *KINDS[name][0]) for name in names))
    named, auto, thinking, schema = (features(one) for one, _ in whole)

    assert named["calls"] == auto["calls"] == 1
    assert thinking["reasoning"] > 0
    assert thinking["content"] > 0
    assert schema["content"] > 0
    assert schema["reasoning"] == 0
