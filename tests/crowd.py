"""A crowd of clients on small budgets, which counts every token id that reached it, to the last byte.

crowd = Crowd(gateway.port, accounts, random.Random(7))
await crowd.run(400)        # until nothing listens any more, or `crowd.over` is set
wrong(gateway, accounts)    # what the ledger says otherwise
"""

import asyncio
import json
import random
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.books.journal_file import number_of
from gateway.books.keys import Keys
from gateway.books.ledger.tables import Tables, ledger_file
from guards.budget import Limit
from tests.processes import Gateway, id_of
from tests.scenarios.asking import CHAT, chat, order, plain

IDS = re.compile(rb'"((?:prompt_)?token_ids)":\[([0-9,]+)\]')
REST_S = 0.02  # after a refusal
ANSWER_S_MAX = 60.0
PROMPT_TOKENS_MAX = 200  # of what the crowd asks
BUDGET_MIN, BUDGET_MAX = 150, 4000  # a part of one answer, to a handful of them


@dataclass
class Account:
    """A key, and the tokens that clients got with it, prompts that were delivered with an answer included."""

    secret: str
    budget: int
    received: int = 0
    output: int = 0  # of these
    spent_up: bool = False

    @property
    def key_id(self) -> str:
        return id_of(self.secret)


def accounts(
    gateway: Gateway, count: int, rng: random.Random, least: int = BUDGET_MIN, most: int = BUDGET_MAX
) -> list[Account]:
    """New keys whose budgets pay for some answers, or for part of one, unless told otherwise."""
    keys = Keys(gateway.data / "keys.db")
    budgets = [rng.randint(least, most) for _ in range(count)]
    made = [Account(keys.create("one of a crowd", limits=[Limit(budget)])[0], budget) for budget in budgets]
    keys.close()
    return made


class Answer(asyncio.Protocol):
    """One request on a connection of its own.

    leaves_after: hangs up with that many ids; None reads to the end. over: done when the connection is closed.
    """

    def __init__(self, account: Account, body: dict[str, Any], leaves_after: int | None = None) -> None:
        self._account, self.body, self._leaves_after = account, body, leaves_after
        self._rest = b""
        self._prompt = False
        self.status = 0
        self.ids = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        data = json.dumps(self.body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self._account.secret}\r\n"
        transport.write(f"{head}connection: close\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)

    def data_received(self, data: bytes) -> None:
        if not self.status:
            self.status = int(data[9:12])
        # An array is counted once it is whole, so what follows the last one is looked at again.
        text, end = self._rest + data, 0
        for found in IDS.finditer(text):
            end = found.end()
            count = found[2].count(b",") + 1
            if found[1] == b"token_ids":
                self.ids += count
                self._account.output += count
            elif self._prompt:
                continue  # each of several choices shows it; it is paid for once
            else:
                self._prompt = True
            self._account.received += count
        self._rest = text[end:] if end else text
        if self._leaves_after is not None and self.ids >= self._leaves_after:
            self.leave()

    def leave(self) -> None:
        """Hang up."""
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


@dataclass
class Crowd:
    """Clients that ask again and again, on accounts drawn by chance.

    asked, refused: how many requests were made, and how many of them were not served.
    stuck: those that did not end.
    """

    port: int
    accounts: list[Account]
    rng: random.Random
    over: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0
    refused: int = 0
    open: int = 0
    stuck: list[str] = field(default_factory=list)

    async def run(self, clients: int, arrive_s: float = 0.3) -> None:
        """Let so many clients come within `arrive_s` seconds; back when all of them are gone."""
        await asyncio.gather(*(self._client(arrive_s * number / clients) for number in range(clients)))

    async def _client(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while not self.over.is_set():
            account = self.rng.choice(self.accounts)
            answer = await self._ask(account)
            if answer is None:
                return
            if answer.status > 200:
                self.refused += 1
                account.spent_up |= answer.status == 402
                await asyncio.sleep(REST_S)

    def wish(self, account: Account) -> Answer:
        """What one client asks for."""
        rng = self.rng
        said = {
            "tokens": rng.randint(5, 400),
            "per_chunk": rng.choice([1, 4, 16]),
            "tokens_per_s": rng.choice([40, 80]),
        }
        said |= {"ttft_s": rng.choice([0, 0, 0.3])}
        body = (plain if rng.random() < 0.1 else chat)(order(**said))
        return Answer(account, body, rng.randint(1, 60) if rng.random() < 0.1 else None)

    async def _ask(self, account: Account) -> Answer | None:
        """One request to its end; None where nothing listens."""
        answer = self.wish(account)
        try:
            await asyncio.get_running_loop().create_connection(lambda: answer, "127.0.0.1", self.port)
        except OSError:
            return None
        self.asked += 1
        self.open += 1
        await asyncio.wait([answer.over], timeout=ANSWER_S_MAX)
        if not answer.over.done():
            self.stuck.append(f"{answer.ids} ids and then nothing within {ANSWER_S_MAX:g} s: {answer.body}")
            answer.leave()
        self.open -= 1
        return answer


def wrong(gateway: Gateway, known: Iterable[Account]) -> list[str]:
    """What a gateway that was started again owes: nothing held, nobody undercharged, nobody beyond the budget."""
    found = []
    balances = {one.scope: one for one in gateway.balances()}
    for one in known:
        balance = balances.get(f"key:{one.key_id}")
        spent, held = (balance.spent, balance.held) if balance else (0, 0)
        if held or not one.received <= spent <= one.budget:
            found.append(f"{one.key_id}: received {one.received}, spent {spent}, held {held}, budget {one.budget}")
    return found + audit(gateway.data)


def audit(data: Path) -> list[str]:
    """What is wrong with the accounts of a gateway in which no request is running."""
    address = f"{ledger_file(data).absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=5)) as db:
        accounts = Tables(db).accounts()
    return [f"{at}: {one}" for at, one in accounts if one.held or not 0 <= one.spent <= one.limit]


class Numbers:
    """Reads a journal's line numbers as it grows, and finds what is damaged or missing."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self.last = path, 0, 0

    def holes(self) -> list[str]:
        """What is wrong with the lines that came since the last look."""
        found = []
        with self._path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written
                number = number_of(line)
                if number != self.last + 1:
                    found.append(f"{number} follows {self.last}")
                self._at += len(line)
                self.last = number or self.last + 1
        return found


async def spend_up(gateway: Gateway, account: Account) -> None:
    """Spend all that is left of an account: to the last token, and not one more."""
    for _ in range(50):
        body = chat(order(tokens=3000, per_chunk=16))
        _, answer = await asyncio.get_running_loop().create_connection(
            lambda body=body: Answer(account, body), "127.0.0.1", gateway.port
        )
        async with asyncio.timeout(ANSWER_S_MAX):
            await answer.over
        if answer.status == 402:
            break
    assert answer.status == 402, f"after many answers: {answer.status}"
    spent = gateway.balance(account.secret).spent
    assert account.budget - PROMPT_TOKENS_MAX < spent <= account.budget, f"{spent} of {account.budget}"
