"""Clients and servers as bad as they get: answers with faults of all kinds, who hangs up or reads slowly, and servers
that are killed and freeze.
"""

import asyncio
import random
from typing import Any

from loadtests.processes import StubProcess, start_stub
from tests.crowd import Account, Answer, Crowd
from tests.scenarios.asking import chat, order, plain

TROUBLE_S = (1.0, 4.0)  # between kills and freezes of servers
OPEN_MAX = 1000  # requests of those who come by chance

FAULTS: dict[str, dict[str, Any]] = {
    "cut": {"at": 20},
    "cut_utf8": {"at": 5},
    "cut_event": {"at": 10},
    "drip": {},
    "silence": {},
    "silence_after": {"at": 15},
    "error_then_done": {"at": 8},
    "abort_finish": {"at": 12},
    "eof_no_done": {"at": 9},
    "status": {"status": 500},
    "no_ids": {},
    "bad_ids": {"at": 6},
    "comments_only": {"at": 4},
    "garbage": {"at": 7},
    "wrong_usage": {},
    "big_event": {"at": 3, "bytes": 200_000},
}


class SlowAnswer(Answer):
    """One that reads nothing for a while, again and again."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._transport.pause_reading()
        asyncio.get_running_loop().call_later(0.2, self._read_on)

    def _read_on(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()


class RudeCrowd(Crowd):
    """Clients whose servers fail, who hang up, and who read slowly.

    turned_away: how many were not let come, for too many were there.
    """

    turned_away = 0

    async def come(self, per_s: float) -> None:
        """Have them come by chance, so many a second, whatever becomes of those before; until `over`, and all are gone.

        At most OPEN_MAX are there at once.
        """
        loop, here = asyncio.get_running_loop(), set[asyncio.Task[Answer | None]]()
        due_s = loop.time()
        while not self.over.is_set():
            due_s += self.rng.expovariate(per_s)
            if (wait_s := due_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if len(here) >= OPEN_MAX:
                self.turned_away += 1
                continue
            task = asyncio.create_task(self._ask(self.rng.choice(self.accounts)))
            here.add(task)
            task.add_done_callback(here.discard)
        await asyncio.gather(*here)

    def wish(self, account: Account) -> Answer:
        rng = self.rng
        said: dict[str, Any] = {"tokens": rng.randint(5, 150), "per_chunk": rng.choice([1, 4, 16])}
        said |= {"tokens_per_s": rng.choice([0, 100, 200]), "ttft_s": rng.choice([0, 0, 0.3])}
        if rng.random() < 0.3:
            fault = rng.choice(list(FAULTS))
            said |= {"fault": fault, **FAULTS[fault], "once": rng.random() < 0.8}
        ask = plain if rng.random() < 0.15 else chat
        body = ask(f"{rng.random()} {order(**said)}", **rng.choice([{}, {}, {"n": 2}, {"stop": ["zebra"]}]))
        kind = SlowAnswer if rng.random() < 0.1 else Answer
        return kind(account, body, rng.randint(1, 60) if rng.random() < 0.15 else None)


class Servers:
    """Stub servers on ports that stay theirs, and the trouble they get into."""

    def __init__(self, count: int, rng: random.Random) -> None:
        self._rng = rng
        self.all: list[StubProcess] = [start_stub() for _ in range(count)]
        self.kills = self.freezes = 0

    async def trouble(self, over: asyncio.Event) -> None:
        """Kill one and start it again, or freeze one for a while, until it is over."""
        while not over.is_set():
            await asyncio.sleep(self._rng.uniform(*TROUBLE_S))
            number = self._rng.randrange(len(self.all))
            if self._rng.random() < 0.5:
                self.kills += 1
                await asyncio.to_thread(self.all[number].kill)
                await asyncio.sleep(self._rng.uniform(0.2, 2))
                self.all[number].stop()
                self.all[number] = await asyncio.to_thread(start_stub, port=self.all[number].port)
            else:
                self.freezes += 1
                self.all[number].freeze()
                await asyncio.sleep(self._rng.uniform(0.2, 4))
                self.all[number].thaw()

    def open(self) -> int:
        """Answers that some server is still making."""
        return sum(one.stats()["open_streams"] for one in self.all)

    def stop(self) -> None:
        for one in self.all:
            one.thaw()
            one.stop()
