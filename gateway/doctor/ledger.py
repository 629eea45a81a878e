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

_INFO = re.compile(r"^(\w+):(.*?)\r?$", re.MULTILINE)


async def ledger(config: Config) -> list[Redis]:
    """Each address that the configuration names; none where the ledger is a file."""
    url = config.ledger.server
    if url is None:
        return []
    login = Login(url.tls, url.username, url.password, url.db)
    return list(await asyncio.gather(*(_look(address, login) for address in url.addresses)))


async def _look(address: Address, login: Login) -> Redis:
    where = "{}:{}".format(*address)
    server = Server(address, login)
    try:
        started_s = time.monotonic()
        info, clock, name = await server.ask([("INFO",), ("TIME",), ("HGET", VAULT, "name")])
        answer_s, at_s = time.monotonic() - started_s, time.time()
        ((_, fsync),) = _pairs((await server.ask([("CONFIG", "GET", "appendfsync")]))[0])
    except VaultDown as down:
        return Redis(where, why=str(down).removeprefix(f"{where}: "))
    except ValueError:  # a server that lets nobody ask
        fsync = None
    finally:
        await server.close()
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
        fsync=fsync,
        replicas=int(said.get("connected_slaves", 0)),
        begun=None if isinstance(name, ResponseError) else name is not None,  # of a cluster, another node may know
    )


def _pairs(said: Any) -> list[tuple[str, str]]:
    if isinstance(said, ResponseError):
        raise ValueError
    words = [word.decode(errors="replace") for word in said]
    return list(zip(words[::2], words[1::2], strict=True))
