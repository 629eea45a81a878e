"""Whether a permit leaked: as many requests as there are permits are to run at once, and the next ones to wait."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

from tests.crowd import Account, Answer
from tests.processes import Gateway
from tests.scenarios.asking import chat, order, plain

MORE_THAN_SEATS = 5
TOKENS, PER_S = 100, 20  # of each of those that take all of them
TRIES = 3  # on a busy machine not all may be there at once
WELL_S_MAX, OVER_S_MAX = 60.0, 30.0  # until all servers are trusted; until all of one try are answered
LOOK_S = 0.05


async def seated(gateway: Gateway, servers: int, seats: int) -> dict[str, int]:
    """Have as many requests run at once as there are permits, and some more: those must wait.

    servers, seats: how many permits each of them has.
    ran, waited: at once. closed: breakers of servers that came to be closed again.
    """
    account = Account(gateway.key("seats"), 0)
    closed, seen = await _well(gateway, account, servers), (0, 0)
    for _ in range(TRIES):
        many = [await _asks(gateway, account, TOKENS, PER_S) for _ in range(servers * seats)]
        many += [await _asks(gateway, account, 1, 0) for _ in range(MORE_THAN_SEATS)]
        seen = max(seen, await _most_of_the_time(gateway, many))
        if seen >= (servers * seats, MORE_THAN_SEATS):
            break
    return {"ran": seen[0], "waited": seen[1], "closed": closed}


async def _most_of_the_time(gateway: Gateway, many: Sequence[Answer]) -> tuple[int, int]:
    """How many run and how many wait until all are answered, of the moments in which enough wait: some come and go."""
    seen, until_s = Counter[tuple[int, int]](), time.monotonic() + OVER_S_MAX
    while time.monotonic() < until_s and not all(one.over.done() for one in many):
        said = await asyncio.to_thread(gateway.metrics)
        waits, here = (int(said.get(f"holdfast_{name}", 0)) for name in ("waiting", "requests_in_flight"))
        if waits >= MORE_THAN_SEATS:
            seen[here - waits, waits] += 1
        await asyncio.sleep(LOOK_S)
    return max(seen, key=lambda one: seen[one], default=(0, 0))


async def _well(gateway: Gateway, account: Account, servers: int) -> int:
    """Ask until every server is trusted again; how many breakers are closed then."""
    closed = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(WELL_S_MAX):
            while True:
                for one in [await _asks(gateway, account, 5, 0) for _ in range(2 * servers)]:
                    await one.over
                said = await asyncio.to_thread(gateway.metrics)
                closed = int(_sum(said, "holdfast_replica_breaker{", 'state="closed"'))
                waits = _sum(said, "holdfast_replica_backing_off{")
                if closed == servers and not waits:
                    break
                await asyncio.sleep(0.2)
    return closed


def _sum(said: Mapping[str, float], name: str, label: str = "") -> float:
    return sum(value for sample, value in said.items() if sample.startswith(name) and label in sample)


async def _asks(gateway: Gateway, account: Account, tokens: int, per_s: float) -> Answer:
    ask = chat if per_s else plain
    answer = Answer(account, ask(f"{random.random()} {order(tokens=tokens, tokens_per_s=per_s)}"))
    await asyncio.get_running_loop().create_connection(lambda: answer, "127.0.0.1", gateway.port)
    return answer
