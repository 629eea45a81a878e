"""Where requests go: sessions, beginnings, weights; with real processes."""

import asyncio
from collections import Counter

import pytest

from loadtests.processes import start_stub
from tests.scenarios.asking import ask, chat, header, order

pytestmark = pytest.mark.slow
SESSIONS = 24


@pytest.fixture
def pair():
    """Two servers of one model, both active."""
    with start_stub() as first, start_stub() as second:
        yield [first.url, second.url]


async def replica_of(gateway, said: str, **headers: str) -> str:
    seen = await ask(gateway, None, chat(said, max_tokens=1), **headers)
    assert seen.status == 200
    return str(header(seen, "x-holdfast-replica"))


async def test_a_session_stays_on_its_replica_and_sessions_are_spread(start_gateway, pair):
    """Each session's turns go to one server, whatever is said; all sessions together use both."""
    gateway = start_gateway(pair, standby=False)

    turns = [
        [await replica_of(gateway, f"turn {turn} of {n}", x_session_id=f"s{n}") for turn in range(3)]
        for n in range(SESSIONS)
    ]

    assert all(len(set(of)) == 1 for of in turns)
    assert len({of[0] for of in turns}) == 2


async def test_sessions_and_beginnings_are_where_they_were_after_a_restart(start_gateway, pair):
    """Nothing is kept for it: another gateway in front of the same servers finds the same caches."""
    found = []
    for _ in range(2):
        gateway = start_gateway(pair, standby=False)
        sessions = [await replica_of(gateway, "hello", x_session_id=f"s{n}") for n in range(SESSIONS)]
        found.append(sessions + [await replica_of(gateway, f"beginning {n}") for n in range(SESSIONS)])
        gateway.stop()

    assert found[0] == found[1]
    assert len(set(found[0])) == 2


async def test_one_beginning_does_not_fill_one_replica_beyond_its_share(start_gateway, pair):
    """What all ask alike goes to one server, until that has more than its share of what is in flight."""
    said = order(tokens=60, tokens_per_s=60)
    gateway = start_gateway(pair, standby=False, routing={"load_tokens": 512})

    alone = {await replica_of(gateway, said) for _ in range(3)}
    crowd = await asyncio.gather(*(ask(gateway, None, chat(said, max_tokens=60)) for _ in range(40)))

    where = Counter(str(header(seen, "x-holdfast-replica")) for seen in crowd)
    assert len(alone) == 1
    assert len(where) == 2
    assert where[alone.pop()] >= max(where.values())
    assert max(where.values()) <= 40 * 0.8


async def test_affinity_can_be_switched_off(start_gateway, pair):
    """Then the least busy is asked, and of two idle ones the first."""
    gateway = start_gateway(pair, standby=False, routing={"sessions": False, "prefixes": False})

    found = {await replica_of(gateway, f"turn {n}", x_session_id=f"s{n}") for n in range(SESSIONS)}

    assert found == {pair[0].removeprefix("http://")}
