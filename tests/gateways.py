"""Many gateways' ledgers over one vault, in one process and on one clock that the test moves."""

import asyncio
import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

from gateway.books.ledger.contract import Lines
from gateway.books.ledger.gone import Gone
from gateway.books.ledger.leased import LOOK_S, LeasedLedger
from gateway.books.ledger.one_off import OneOff
from gateway.books.ledger.register import Register
from gateway.books.ledger.sqlite import SqliteLedger
from gateway.books.vault.memory import MemoryVault
from guards.budget import Limit, Line, Window
from guards.refusal import Refused
from tests.lossy_vault import LossyVault

LINES = Lines([Line("org:acme", Limit(1_000, Window.DAY))])
NOON = 1_767_268_800.0  # 2026-01-01T12:00:00Z


class Clock:
    """Unix and monotonic seconds alike."""

    now_s = NOON

    def __call__(self) -> float:
        return self.now_s


class Gateways:
    """So many of them, by number, each with its own directory and its own way to the vault.

    gone_s: after which gateways that are gone are written off; one_off: whether they are.
    ended: whether each was told to end requests of LINES.
    """

    def __init__(
        self, folder: Path, count: int, *, goes_on: bool = False, gone_s: float | None = None, one_off: bool = False
    ) -> None:
        self.clock = Clock()
        self.vault = MemoryVault(self.clock)
        self._folder, self._goes_on, self._gone_s, self._one_off = folder, goes_on, gone_s, one_off
        self.ways = [LossyVault(self.vault) for _ in range(count)]
        self.ended = [False] * count
        self.ledgers: list[LeasedLedger] = []
        self.names: list[str] = []

    async def start(self) -> "Gateways":
        """Begin the vault, and all of them."""
        with suppress(ValueError):  # it was begun before
            await self.vault.begin()
        for number in range(len(self.ways)):
            self.ledgers.append(await self._begun(number))
        return self

    def path(self, number: int) -> Path:
        """Where one keeps its books."""
        return self._folder / f"gateway-{number}"

    async def _begun(self, number: int) -> LeasedLedger:
        local = SqliteLedger(self.path(number), self.clock)
        register = Register(self.path(number))
        self.names[number:] = [register.name]
        way, clock = self.ways[number], self.clock
        gone = None if self._gone_s is None else Gone(way, register, self._gone_s, clock, Random(number))
        ledger = LeasedLedger(
            local, register, way, clock=clock, wall=clock, goes_on=lambda lines: self._goes_on, hope_s=0.0, gone=gone,
            one_off=OneOff(way, register.name, register.tags) if self._one_off else None,
        )  # fmt: skip

        def lapsed(over: Callable[[Sequence[Line]], bool]) -> int:
            self.ended[number] |= over(LINES)
            return 0

        ledger.on_lapse, ledger.serves = lapsed, True
        try:
            await ledger.begin(lambda scope: "")
        except Refused:
            await ledger.close()
            raise
        await quiet(ledger)
        return ledger

    async def crash(self, number: int) -> None:
        """Kill one, and start it again from its files."""
        ledger = self.ledgers[number]
        await ledger.audit()
        await ledger.local.close()  # settles nothing: what was held is charged at the next start
        await ledger.register.close()
        self.ledgers[number] = await self._begun(number)

    async def pass_s(self, seconds: float) -> None:
        """Let time go by, as their event loops would."""
        until = self.clock.now_s + seconds
        while self.clock.now_s < until - LOOK_S / 2:
            self.clock.now_s += LOOK_S
            await self.look()

    async def look(self) -> None:
        """Have all of them look once, and see what comes of it."""
        for ledger in self.ledgers:
            ledger.look()
            await quiet(ledger)

    async def stands(self, line: Line) -> tuple[int, int]:
        """What all of them have spent and hold of a limit, by their own books."""
        found = []
        for ledger in self.ledgers:
            accounts = await ledger.local.balance(*line)
            found.append((accounts.spent, accounts.held))
        spent, held = zip(*found, strict=True)
        return sum(spent), sum(held)

    def snapshot(self) -> object:
        """What the vault knows now."""
        return copy.deepcopy(self.vault.__dict__["_shelf"])

    def forget(self, snapshot: object) -> None:
        """Have the vault be what it was then, as a replica is that had not heard all; it knows that it may be."""
        self.vault.__dict__["_shelf"] = copy.deepcopy(snapshot)
        self.vault.restart()

    async def close(self) -> None:
        """End all of them."""
        for ledger in self.ledgers:
            await ledger.close()


async def quiet(ledger: LeasedLedger) -> None:
    """Wait until no exchange of a gateway is on its way, nor a look at who is gone."""
    gone = ledger._gone
    # An event for tests would be one more.
    while any(one.busy for one in (*ledger.leases.values(), *([gone] if gone else []))):  # noqa: ASYNC110
        await asyncio.sleep(0)
