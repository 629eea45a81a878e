"""Vaults for tests: every engine behind the same words, each with a clock that the test has in its hand."""

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from hashlib import sha1
from pathlib import Path
from typing import Any

from gateway.books.ledger.contract import Place
from gateway.books.vault.contract import Claim, Exchange, Gateway, Refusal, Vault
from gateway.books.vault.memory import MemoryVault
from gateway.books.vault.redis import RedisVault, keys_of
from gateway.books.vault.redis_server import Login
from gateway.books.vault.sqlite import SqliteVault
from tests.redis_servers import RedisServer

TAG = "org:acme"
ACME = Place("org:acme", "tokens", "2026-11")


class Clock:
    """Unix seconds, of now at first: Redis lets nothing live whose time to go is past."""

    def __init__(self) -> None:
        self.now_s = float(int(time.time()))

    def __call__(self) -> float:
        return self.now_s


class ClockedRedisVault(RedisVault):
    """A vault in real servers, for which it is the time that the test says."""

    def __init__(self, servers: Sequence[RedisServer], clock: Clock) -> None:
        super().__init__([server.address for server in servers], Login())
        self.clock = clock

    async def _run(self, script: Any, *arguments: Any, **options: Any) -> Any:
        return await super()._run(ClockedScript(script.text, self.clock()), *arguments, **options)

    async def _ask(self, key: Any, commands: Any) -> list[Any]:
        answers = await super()._ask(key, commands)
        now = [b"%d" % self.clock(), b"%d" % round(self.clock() % 1 * 1e6)]
        return [now if command == ("TIME",) else answer for command, answer in zip(commands, answers, strict=False)]


class ClockedScript:
    """A script in which TIME is a constant; another time is another script."""

    def __init__(self, text: str, now_s: float) -> None:
        self.text = text.replace("redis.call('TIME')", f"{{'{int(now_s)}', '{round(now_s % 1 * 1e6)}'}}")
        self.sha = sha1(self.text.encode()).hexdigest()


class Rig:
    """One vault, and what can happen to it. engine: memory, sqlite, redis or cluster."""

    def __init__(self, engine: str, data: Path, servers: Sequence[RedisServer]) -> None:
        self.engine, self.data, self.servers = engine, data, servers
        self.clock = Clock()
        for server in servers:
            server.ask("FLUSHALL")
        self.vault = self.another()

    def another(self) -> Vault:
        """The same vault, as another process has it."""
        if self.engine == "memory":
            return self.vault if hasattr(self, "vault") else MemoryVault(self.clock)
        if self.engine == "sqlite":
            return SqliteVault(self.data, self.clock)
        return ClockedRedisVault(self.servers[:1], self.clock)

    def another_run(self) -> None:
        """Have it look as if what was answered so far had been answered by another server."""
        if isinstance(self.vault, MemoryVault):
            self.vault.restart()
        elif self.engine == "sqlite":
            with closing(sqlite3.connect(self.data / "vault.sqlite3")) as db, db:
                db.execute("""UPDATE tags SET value = CAST(json_set(value, '$.run', 'another') AS BLOB)""")
        else:
            self.write("HSET", keys_of(TAG)[0], "run", "another")

    def write(self, command: str, key: str, *rest: Any) -> Any:
        """One command of the tests' own, to whichever server has the key."""
        if len(self.servers) == 1:
            return self.servers[0].ask(command, key, *rest)
        from redis.cluster import RedisCluster

        with RedisCluster("127.0.0.1", self.servers[0].port) as client:
            return client.execute_command(command, key, *rest)

    async def close(self) -> None:
        await self.vault.close()


class Teller:
    """A gateway that says what it is told to, and numbers its exchanges."""

    def __init__(self, vault: Vault, name: str, epoch: int = 1, start: str = "") -> None:
        self.vault, self.name, self.epoch, self.number, self.start = vault, name, epoch, 0, start

    async def says(self, *claims: Claim, known: bool = False, tag: str = TAG) -> Exchange | Refusal:
        """One exchange."""
        self.number += 1
        return await self.vault.exchange(tag, Gateway(self.name, self.epoch, self.number, self.start), claims, known)


def claim(
    limit: int | None = 1_000,
    rights: int = 0,
    spent: int = 0,
    want: int = 0,
    need: int = 0,
    *,
    place: Place = ACME,
    as_of: float = 0,
    corrected: int = 0,
) -> Claim:
    """What a gateway says of one account."""
    return Claim(place, limit, as_of, rights, spent, want, need, corrected)
