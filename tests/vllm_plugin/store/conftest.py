"""Stores in shared memory, each in a directory of its own."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
STORES = ["store"]


@pytest.fixture(params=STORES)
def any_store(request: pytest.FixtureRequest) -> PageStore:
    return request.getfixturevalue(request.param)
