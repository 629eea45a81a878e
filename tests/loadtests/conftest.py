"""Stub upstreams as processes, shared by the tests of the load tests."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loadtests.processes import StubProcess, start_stub


@pytest.fixture(scope="package")
def stub() -> Iterator[StubProcess]:
    """One stub that speaks as fast as it can; tests must leave nothing armed."""
    with start_stub(model="tiny", seed=7) as process:
        yield process


@pytest.fixture
def start() -> Iterator[Callable[..., StubProcess]]:
    """Start further stubs with options of their own; all end with the test."""
    processes: list[StubProcess] = []

    def one(**options: Any) -> StubProcess:
        processes.append(start_stub(**{"model": "tiny", "seed": 7, **options}))
        return processes[-1]

    yield one
    for process in processes:
        process.stop()
