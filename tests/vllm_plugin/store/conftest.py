"""Stores in shared memory, each in a directory of its own; and on Redis servers, started once and emptied."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm_plugin.store.redis_servers import Redis, address_of, made_key
from vllm_plugin.store import PageStore, open_store


@pytest.fixture
def place() -> Iterator[Path]:
    """Where a store may be: in shared memory, as in earnest."""
    path = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    yield path / "store"
    shutil.rmtree(path)


@pytest.fixture
def url(place: Path) -> str:
    return f"lmdb://{place}?size=16MiB"


@pytest.fixture
def store(url: str) -> Iterator[PageStore]:
    opened = open_store(url)
    yield opened
    opened.close()


# What the contract is tried on: each gives an empty store by the name of a fixture. Another engine adds its own.
STORES = ["store", "redis_store", "redis_copies"]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Redis]]:
    """Two servers that no test hurts."""
    directory = tmp_path_factory.mktemp("redis")
    with Redis(directory / "a") as one, Redis(directory / "b") as other:
        yield [one, other]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return made_key(tmp_path / "pages.key")


@pytest.fixture
def two_servers(servers: list[Redis], key_file: Path) -> str:
    """The address of a store on both, which is empty."""
    for server in servers:
        server.ask("FLUSHALL")
    return address_of(servers, key_file, copies=2)


@pytest.fixture
def redis_store(servers: list[Redis], key_file: Path) -> Iterator[PageStore]:
    """On one server."""
    yield from opened_on(servers[:1], key_file, copies=1)


@pytest.fixture
def redis_copies(servers: list[Redis], key_file: Path) -> Iterator[PageStore]:
    """On two, each page on both."""
    yield from opened_on(servers, key_file, copies=2)


def opened_on(servers: list[Redis], key_file: Path, copies: int) -> Iterator[PageStore]:
    for server in servers:
        server.ask("FLUSHALL")
    opened = open_store(address_of(servers, key_file, copies=copies))
    yield opened
    opened.close()


@pytest.fixture(params=STORES)
def any_store(request: pytest.FixtureRequest) -> PageStore:
    return request.getfixturevalue(request.param)
