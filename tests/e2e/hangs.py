"""Real vLLM servers that hang, by real SIGSTOP, under streams: whole process groups, or the engine alone."""

import asyncio
import os
import random
import signal
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

from gateway.local.engine import Engine
from loadtests.cutting_proxy import Cut
from tests.answers import Answer, ask
from tests.e2e.requests import chat
from tests.processes import Gateway, until

STREAMS = 8
TOKENS = 300
STARTED_S_MAX = 60.0
READMITTED_S_MAX = 60.0


def seeded_stalls(seed: int, tokens: int) -> Callable[[int, bytes], Cut | None]:
    """Let streams of `tokens` tokens fall silent somewhere, their connection open."""
    rng = random.Random(seed)

    def plan(number: int, request: bytes) -> Cut | None:
        del number, request
        return Cut(rng.randrange(1, tokens - 3), rng.randrange(400), "stall")

    return plan


async def one_stop(
    number: int,
    fleet: Sequence[Engine],
    gateway: Gateway,
    key: str,
    *,
    alone: bool,
    seed: int = 2026,
    tokens: int = TOKENS,
    sooner: int = 1,
    known: dict[int, list[Answer]] | None = None,
) -> dict[str, Any]:
    """Stream, stop the server that answers by SIGSTOP, compare, let it go on, and wait until it is in use again.

    tokens: of each stream; the stop falls somewhere between a sixteenth and a quarter of what clients read of them: the
        server is ahead of those, and may not be done.
    sooner: how many times sooner it falls.
    known: what undisturbed streams of rounds were, by their number; asked for where it is not there yet.
    alone: stop its EngineCore alone, under an API server that goes on saying that all is well.
    """
    rng = random.Random(seed + number)
    bodies = [
        chat(
            f"Round {number}: tell me {n} things.", max_tokens=tokens, ignore_eos=True, repetition_penalty=1.1 + n / 20
        )
        for n in range(STREAMS)
    ]
    async with aiohttp.ClientSession() as session:
        known = {} if known is None else known
        if number not in known:
            known[number] = await asyncio.gather(*(ask(session, fleet[1].url, body) for body in bodies))
        wanted = known[number]
        spent = sum(one.spent for one in gateway.balances())
        ejected = gateway.metric("holdfast_ejections_total")
        growing = [Answer() for _ in bodies]
        asked = [
            asyncio.create_task(ask(session, gateway.url, body, key=key, answer=answer))
            for body, answer in zip(bodies, growing, strict=True)
        ]
        stop_at = rng.randrange(tokens // 16, tokens // 4) * STREAMS // sooner
        async with asyncio.timeout(STARTED_S_MAX):
            while sum(answer.tokens for answer in growing) < stop_at:  # noqa: ASYNC110 - `ask` sets no event per token
                await asyncio.sleep(0.005)
        begun = next(answer.replica for answer in growing if answer.replica)  # of the first that has its head
        serving = next(engine for engine in fleet if engine.url.endswith(begun))
        stop(serving, alone, signal.SIGSTOP)
        try:
            got = await asyncio.gather(*asked)
        finally:
            stop(serving, alone, signal.SIGCONT)
    await asyncio.to_thread(until, lambda: gateway.get("/readyz")[0] == 200 and all_up(gateway), READMITTED_S_MAX)
    await asyncio.to_thread(gateway.paid, key)  # a client has its end a moment before its charge is on disk
    charged = sum(one.spent for one in gateway.balances()) - spent
    return {
        "stopped": "EngineCore alone" if alone else "the process group",
        "equal": sum(want.content == have.content for want, have in zip(wanted, got, strict=True)),
        "failed_over": sum(have.said is not None for have in got),
        "gaps_s": [max(have.gaps_s) for have in got if have.said is not None],
        "usual_gap_s": statistics.median(gap for want in wanted for gap in want.gaps_s),
        "usual_gap_s_max": max(gap for want in wanted for gap in want.gaps_s),
        "ejected": gateway.metric("holdfast_ejections_total") - ejected,
        "charged_exactly": charged == sum(map(_cost, got)),
    }


async def full_load(
    seconds: float, fleet: Sequence[Engine], gateway: Gateway, key: str, at_once: int = 32
) -> dict[str, Any]:
    """Keep `at_once` streams going for so long, on servers and a gateway that starve each other; count what happens."""
    bodies = [
        chat(f"Load: tell me {n} things.", max_tokens=TOKENS, repetition_penalty=1.1 + n / 40) for n in range(STREAMS)
    ]
    gaps: list[float] = []
    equal = streams = 0
    names = ("holdfast_ejections_total", "holdfast_hedges_total", "holdfast_hedges_won_total")
    before = {name: gateway.metric(name) for name in names}
    downs = gateway.log().count('"replica.down"')
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        wanted = await asyncio.gather(*(ask(session, fleet[1].url, body) for body in bodies))
        ends_at = asyncio.get_running_loop().time() + seconds

        async def keep_asking(number: int) -> None:
            nonlocal equal, streams
            while asyncio.get_running_loop().time() < ends_at:
                have = await ask(session, gateway.url, bodies[number % STREAMS], key=key)
                streams += 1
                equal += have.content == wanted[number % STREAMS].content
                gaps.extend(have.gaps_s)

        await asyncio.gather(*map(keep_asking, range(at_once)))
    gaps.sort()
    return {
        "seconds": seconds,
        "at_once": at_once,
        "streams": streams,
        "equal": equal,
        "gap_s": {str(share): gaps[min(len(gaps) - 1, int(share * len(gaps)))] for share in (0.5, 0.99, 0.999, 1.0)},
        "downs": gateway.log().count('"replica.down"') - downs,
        **{name.removeprefix("holdfast_"): gateway.metric(name) - before[name] for name in names},
    }


def stop(engine: Engine, alone: bool, number: int) -> None:
    """Send SIGSTOP or SIGCONT to an engine's process group, or to its EngineCore alone."""
    if alone:
        os.kill(engine.core_pid, number)
    else:
        os.killpg(engine.pid, number)


def all_up(gateway: Gateway) -> bool:
    """Whether every replica gets requests."""
    ups = [value for name, value in gateway.metrics().items() if name.startswith("holdfast_replica_up")]
    return bool(ups) and all(ups)


def _cost(answer: Answer) -> int:
    assert answer.usage is not None
    total: int = answer.usage["prompt_tokens"] + answer.tokens
    return total
