"""One house for all scenarios that leave it as they found it, and houses of one's own for the others."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests import stub_tokenizer
from loadtests.processes import StubProcess, start_stub
from tests.processes import TRUSTING
from tests.processes import ForkedGateway as Gateway
from tests.scenarios.asking import House

# Short enough for tests that wait them out, long enough for two busy cores.
# No suspicion before a silence ends its leg, however much of the rhythm earlier tests have taught.
TIMEOUTS = {"first_token_s": 1.5, "between_tokens_s": 1.0, "suspect_s": 3.0, "probe_every_s": 0.5}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub's tokenizer.json."""
    return stub_tokenizer.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def stubs() -> Iterator[tuple[StubProcess, StubProcess]]:
    """An active server and one that stands by, of the same model; tests must leave nothing armed."""
    with start_stub() as active, start_stub() as standby:
        yield active, standby


@pytest.fixture(scope="session")
def house(stubs, tokenizer, tmp_path_factory) -> Iterator[House]:
    """A gateway that decodes by itself."""
    active, standby = stubs
    folder = tmp_path_factory.mktemp("house")
    with Gateway(folder, [active.url, standby.url], tokenizer=tokenizer, timeouts=TIMEOUTS, health=TRUSTING) as gateway:
        yield House(gateway, active, standby, gateway.keys_create("somebody"))
        assert gateway.stop() == 0
        assert gateway.faults() == []


@pytest.fixture(scope="session")
def discovering_house(stubs, tmp_path_factory) -> Iterator[House]:
    """A gateway that was told URLs only: models are asked for, text comes from /detokenize."""
    active, standby = stubs
    folder = tmp_path_factory.mktemp("discovering")
    with Gateway(folder, [active.url, standby.url], discovery=True, timeouts=TIMEOUTS, health=TRUSTING) as gateway:
        yield House(gateway, active, standby, gateway.keys_create("somebody"))
        assert gateway.stop() == 0
        assert gateway.faults() == []


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Start a gateway of one's own; it ends with the test, and must not have met a bug."""
    started: list[Gateway] = []

    def start(upstreams: list[str], **options: Any) -> Gateway:
        folder = tmp_path / f"gateway-{len(started)}"
        folder.mkdir()
        started.append(Gateway(folder, upstreams, **options))
        return started[-1]

    yield start
    for gateway in started:
        gateway.kill()
        assert gateway.faults() == []
