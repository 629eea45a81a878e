"""One Redis server, as a vault speaks to it: a few connections, each answer in time or none at all."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, RedisSSLContext, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from gateway.books.vault.contract import VaultDown

ANSWER_S_MAX = 0.5  # for a connection where one is needed, and all answers
CONNECTIONS_MAX = 16  # to one server; who finds none waits
BACKOFF_S, BACKOFF_S_MAX = 0.05, 1.0  # before a server that failed is tried again; doubled each time

Command = tuple[str | bytes | int | float, ...]
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Login:
    """How servers are spoken to. Its password is shown to nobody."""

    tls: bool = False
    username: str | None = None
    password: str | None = None
    db: int = 0

    def __repr__(self) -> str:
        return f"Login(tls={self.tls}, db={self.db})"

    def connection(self, address: Address) -> AbstractConnection:
        """A connection that is not made yet, and that does not try again by itself."""
        kind = SSLConnection if self.tls else Connection
        connection = kind(
            host=address[0],
            port=address[1],
            username=self.username,
            password=self.password,
            db=self.db,
            protocol=2,
            socket_timeout=None,  # the whole of `ask` has one
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
        )
        if isinstance(connection, SSLConnection):
            connection.ssl_context = authorities()
        return connection


class Server:
    """A server by its address; used from one event loop.

    After a failure it is not asked again for a while, which grows: by how long is drawn anew each time («full jitter»),
    so that many gateways do not come back to it at the same moment.

    commands: sent so far.
    """

    def __init__(self, address: Address, login: Login) -> None:
        self.address = address
        self.commands = 0
        self._login = login
        self._idle: list[AbstractConnection] = []
        self._turns = asyncio.Semaphore(CONNECTIONS_MAX)
        self._failures = 0
        self._away_until_s = 0.0

    @property
    def away(self) -> bool:
        """Whether it failed, and is not tried again yet."""
        return asyncio.get_running_loop().time() < self._away_until_s

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one go; an answer to each, where the server refuses one its ResponseError.

        Raises VaultDown: at once while the server is away, else within ANSWER_S_MAX. Whether the server has heard the
        commands is not known then. A connection that was left before its answers had come is closed, never used again.
        """
        if self.away:
            raise VaultDown(f"{self._shown}: failed a moment ago")
        try:
            async with asyncio.timeout(ANSWER_S_MAX), self._turns:
                answers = await self._asked(commands)
        except TimeoutError:
            raise await self._failed(f"no answer within {ANSWER_S_MAX} s") from None
        except AuthenticationError:
            raise await self._failed("the user name or the password is wrong") from None
        except (RedisError, OSError) as error:
            raise await self._failed(f"{type(error).__name__}: {error}") from None
        self._failures = 0
        return answers

    async def close(self) -> None:
        """Let go of all connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)

    async def _asked(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._idle.pop() if self._idle else self._login.connection(self.address)
        try:
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            self.commands += len(commands)
            answers = [await answer(connection) for _ in commands]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        return answers

    async def _failed(self, why: str) -> VaultDown:
        """Keep away for a while. Those that failed together failed once."""
        if not self.away:
            most_s = min(BACKOFF_S_MAX, BACKOFF_S * 2 ** min(self._failures, 10))
            self._failures += 1
            self._away_until_s = asyncio.get_running_loop().time() + random.uniform(0, most_s)
        await self.close()
        return VaultDown(f"{self._shown}: {why[:200]}")

    @property
    def _shown(self) -> str:
        return "{}:{}".format(*self.address)


@cache
def authorities() -> RedisSSLContext:
    """Whom to trust: the same for all connections, since reading the system's list takes milliseconds."""
    return SSLConnection().ssl_context


async def answer(connection: AbstractConnection) -> Any:
    """The next answer; an error that the server says of a command is one, too."""
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error
