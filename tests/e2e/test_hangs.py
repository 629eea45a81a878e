"""Real vLLM servers that hang, and connections that do: the client must not be able to tell."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.local.engine import Engine
from tests.answers import Answer
from tests.conftest import Server
from tests.e2e.conftest import Proxy
from tests.e2e.cuts import run_cuts
from tests.e2e.hangs import STREAMS, one_stop, seeded_stalls
from tests.e2e.requests import chat
from tests.processes import Gateway

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TOKENS = 60
LASTING = 800  # a warm engine is done with as many before its clients have read a hundred
STALLS, ROUNDS_MAX = 20, 10
STOPS_MAX = 4
PAUSE_S_MAX = 30.0  # a bound for starved machines, not the goal: `make prove` measures that


@pytest.mark.parametrize(
    "alone", [pytest.param(False, id="all of it", marks=pytest.mark.prove), pytest.param(True, id="its engine")]
)
async def test_streams_outlive_a_server_that_is_stopped(
    engines: tuple[Server, Server], engine_model: Path, tmp_path: Path, alone: bool
) -> None:
    """SIGSTOP of all of vLLM, or of its engine alone, whose API still says that it is well: all go on exactly."""
    fleet = [one.engine for one in engines if isinstance(one.engine, Engine)]
    if len(fleet) < len(engines):
        pytest.skip("these servers were started by somebody else, and are not to be stopped")
    tokenizer = engine_model / "tokenizer.json"
    with Gateway(tmp_path, [engine.url for engine in fleet], model="tiny", tokenizer=tokenizer) as gateway:
        key = gateway.key("alice", 1_000_000)

        found: list[dict[str, Any]] = []
        known: dict[int, list[Answer]] = {}
        for seed in range(STOPS_MAX):  # a fast server may be done before it is stopped, which proves nothing
            when: dict[str, Any] = {"alone": alone, "tokens": LASTING, "sooner": 4 ** (seed + 1)}
            found.append(await one_stop(seed, fleet, gateway, key, known=known, **when))
            if found[-1]["failed_over"]:
                break
        assert found[-1]["failed_over"] > 0, found

        assert [one["equal"] for one in found] == [STREAMS] * len(found), found
        assert all(one["charged_exactly"] for one in found)
        assert all(gap < PAUSE_S_MAX for one in found for gap in one["gaps_s"])
        assert gateway.faults() == []


@pytest.mark.prove
async def test_streams_whose_connection_falls_silent_go_on_elsewhere(
    gateway: Gateway, key: str, proxy: Proxy, engines: tuple[Server, Server]
) -> None:
    """Stalls at seeded tokens, 8 streams at once, of a server that is well: each is raced, nobody is ejected."""
    proxy.plan(seeded_stalls(seed=2026, tokens=TOKENS))
    before, ejected = proxy.cuts, gateway.metric("holdfast_ejections_total")
    bodies = [
        chat(f"Write {count} lines.", max_tokens=TOKENS, ignore_eos=True, repetition_penalty=1.1 + count / 20)
        for count in range(8)
    ]

    tallies = []
    while proxy.cuts - before < STALLS and len(tallies) < ROUNDS_MAX:  # who begins at the other server proves nothing
        tallies.append(await asyncio.wait_for(run_cuts(engines[1].url, gateway.url, bodies, 1, key=key), 120))

    assert [tally.differing for tally in tallies] == [[]] * len(tallies)
    assert [tally.equal for tally in tallies] == [len(bodies)] * len(tallies)
    assert proxy.cuts - before >= STALLS
    assert all(gap < PAUSE_S_MAX for tally in tallies for gap in tally.gaps_s)
    assert gateway.metric("holdfast_ejections_total") == ejected
    assert gateway.paid(key).spent > 0
