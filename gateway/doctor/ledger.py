"""Asks the Redis servers that gateways share a ledger on, how they keep what they are told."""

import asyncio
import re
import time
from typing import Any

from redis.exceptions import ResponseError

from gateway.books.vault.contract import VaultDown
from gateway.books.vault.redis import VAULT
from gateway.books.vault.redis_server import Address, Login, Server
from gateway.config import Config
from gateway.doctor.facts import Redis

TRIES_MAX = 3
_INFO = re.compile(r"^(\w+):(.*?)\r?$", re.MULTILINE)


async def ledger(config: Config) -> list[Redis]:
    """Each address that the configuration names; none where the ledger is a file."""
    url = config.ledger.server
    if url is None:
        return []
    login = Login(url.tls, url.username, url.password, url.db)
    return list(await asyncio.gather(*(_look(address, login) for address in url.addresses)))


async def _look(address: Address, login: Login) -> Redis:
    """Ask one; a few times, since a single answer that comes too late says little."""
    where = "{}:{}".format(*address)
    why = ""
    for _ in range(TRIES_MAX):
        server = Server(address, login)
        try:
            return await _asked(where, server)
        except VaultDown as down:
            why = str(down).removeprefix(f"{where}: ")
        finally:
            await server.close()
    return Redis(where, why=why)


async def _asked(where: str, server: Server) -> Redis:
    """Raises VaultDown."""
    started_s = time.monotonic()
    info, clock, name = await server.ask([("INFO",), ("TIME",), ("HGET", VAULT, "name")])
    answer_s, at_s = time.monotonic() - started_s, time.time()
    (fsync,) = await server.ask([("CONFIG", "GET", "appendfsync")])
    if isinstance(info, ResponseError):
        return Redis(where, why=f"refuses INFO: {str(info)[:200]}")
    said = dict(_INFO.findall(info.decode(errors="replace")))
    ahead_s = 0.0
    if not isinstance(clock, ResponseError):
        ahead_s = int(clock[0]) + int(clock[1]) / 1e6 - (at_s - answer_s / 2)
    return Redis(
        where,
        answer_s=answer_s,
        ahead_s=ahead_s,
        version=said.get("redis_version", "")[:32],
        policy=said.get("maxmemory_policy", "")[:32],
        memory_max=int(said.get("maxmemory", 0)),
        append_only=said.get("aof_enabled") == "1",
        fsync=_value(fsync),
        replicas=int(said.get("connected_slaves", 0)),
        begun=None if isinstance(name, ResponseError) else name is not None,  # of a cluster, another node may know
    )


def _value(pair: Any) -> str | None:
    """What CONFIG GET says; None of a server that lets nobody ask."""
    return pair[1].decode(errors="replace") if isinstance(pair, list) and len(pair) == 2 else None
