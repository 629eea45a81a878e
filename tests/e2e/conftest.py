"""Real vLLM behind a cutting proxy, with the real gateway in front."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from gateway.local.engine import Engine
from loadtests.cutting_proxy import Cut, CuttingProxy
from tests.conftest import Server, Teller, revive, with_vllm
from tests.processes import TRUSTING, Gateway
from tests.shared_pages import paged_fleet
from tests.vllm_plugin.real.restored import thinking_model

Plan = Callable[[int, bytes], Cut | None]


class Proxy:
    """A cutting proxy on a thread and loop of its own, so that tests of any colour can use it."""

    def __init__(self, upstream: Server | Engine) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._proxy = CuttingProxy()
        host, _, port = upstream.address.rpartition(":")
        self.url = f"http://127.0.0.1:{self._run(self._proxy.start(host, int(port)))}"

    @property
    def cuts(self) -> int:
        """How many streams were cut so far."""
        return len(self._proxy.cuts)

    def plan(self, plan: Plan) -> None:
        """Cut by this plan from now on."""
        self._proxy.plan = plan

    def lead(self, upstream: Server | Engine) -> None:
        """Pass new connections on to another server, as if the first had been started anew."""
        host, _, port = upstream.address.rpartition(":")
        self._proxy.lead(host, int(port))

    def stop(self) -> None:
        self._run(self._proxy.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=20)


@pytest.fixture(scope="session")
def proxy(engines: tuple[Server, Server]) -> Iterator[Proxy]:
    """In front of the first engine."""
    proxy = Proxy(engines[0])
    yield proxy
    proxy.stop()


@pytest.fixture(autouse=True)
def no_cuts(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test inherits another one's cuts."""
    yield
    if "proxy" in request.fixturenames:
        request.getfixturevalue("proxy").plan(lambda number, body: None)


@dataclass
class Paged:
    """Two servers with the plugin and one page store in shared memory, of the model that thinks, for the session.

    home: of their logs, and by which `shared_pages.store_url` knows the store.
    """

    home: Path
    model: Path
    _fleet: Sequence[Engine]

    def fleet(self) -> Sequence[Engine]:
        """Both, well and warm, whatever a test before has done to them."""
        revive(self._fleet)
        return self._fleet


@pytest.fixture(scope="session")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paged]:
    """They parse reasoning and calls of tools."""
    with_vllm()
    folder = tmp_path_factory.mktemp("paged")
    home, model = folder / "paged", thinking_model(folder / "model")
    with paged_fleet(2, model, home, arguments=["--reasoning-parser", "qwen3"], on_progress=Teller()) as fleet:
        yield Paged(home, model, fleet)


@pytest.fixture(scope="session")
def tokenizer(engine_model: Path) -> Tokenizer:
    """The served model's tokenizer."""
    return Tokenizer.from_file(str(engine_model / "tokenizer.json"))


@pytest.fixture(scope="session")
def gateway(
    proxy: Proxy, engines: tuple[Server, Server], engine_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """The gateway in front of [proxy → engine 1 (active), engine 2 (standby)], with the model's tokenizer."""
    folder = tmp_path_factory.mktemp("gateway")
    tokenizer = engine_model / "tokenizer.json"
    with Gateway(folder, [proxy.url, engines[1].url], model="tiny", tokenizer=tokenizer, health=TRUSTING) as gateway:
        yield gateway
        assert gateway.faults() == []


@pytest.fixture(scope="session")
def key(gateway: Gateway) -> str:
    """A key with a budget that nothing here uses up."""
    return gateway.keys_create("e2e", "100M")


@pytest.fixture(scope="session")
def discovering(
    proxy: Proxy, engines: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """A gateway that was told nothing but the servers' addresses: text after a loss comes from /detokenize."""
    folder = tmp_path_factory.mktemp("discovering")
    with Gateway(folder, [proxy.url, engines[1].url], discovery=True, health=TRUSTING) as gateway:
        yield gateway
        assert gateway.faults() == []
