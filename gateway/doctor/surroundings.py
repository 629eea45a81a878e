"""Looks at this machine: the data directory and its disk, open files, ports, page stores of its own."""

import asyncio
import os
import resource
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from gateway.config import Config
from gateway.descriptors import PER_CLIENT, RESERVE
from gateway.doctor.facts import Gateway, Machine, Store
from gateway.doctor.listening import listening
from gateway.fleet.page_status import UNREADABLE
from gateway.stream.leg import Target
from gateway.stream.upstream import Upstream

ANSWER_S = 3.0
STORE_S = 1.0
STORES_MAX = 64
MOUNTS = Path("/proc/mounts")
REDIS_PORT = 6379


class _Ready(msgspec.Struct):
    ready: bool
    why: list[str]


async def machine(config: Config, upstream: Upstream) -> Machine:
    """What is to be known of it. Nothing is made, nor left behind."""
    data, listen = config.data, config.listen
    there = next(path for path in (data, *data.parents) if path.exists())
    port, why = await _at_port(config, upstream)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # a gateway raises its own as far as it may: descriptors.py
    return Machine(
        str(data),
        made=data.exists(),
        writable=_writable(there),
        shared=data.exists() and bool(stat.S_IMODE(data.stat().st_mode) & 0o077),
        free=_free(there),
        kind=_kind(there),
        sync_s=await asyncio.to_thread(_sync_s, there),
        files_max=2**63 if most == resource.RLIM_INFINITY else most,
        files_wanted=RESERVE + PER_CLIENT * config.limits.client_connections,
        host=listen.host,
        admin_host=listen.admin_host,
        admin_listens=(listening(listen.admin_port) or ()) if port in (Gateway.READY, Gateway.NOT_READY) else (),
        admin_taken=await _taken(config, upstream) if port in (Gateway.NOBODY, Gateway.OTHERS) else (),
        keys=bool(config.keys) or (data / "keys.db").exists(),
        port=port,
        why=why,
    )


def _writable(there: Path) -> str:
    if not there.is_dir():
        return f"{there} is no directory"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"no permission in {there}"


def _free(there: Path) -> int | None:
    with suppress(OSError):
        disk = os.statvfs(there)
        return disk.f_bavail * disk.f_frsize
    return None


def _kind(there: Path) -> str:
    """Of the file system that it lies on: the innermost mount."""
    found, path = "", there.resolve()
    with suppress(OSError):
        longest = -1
        for line in MOUNTS.read_text(errors="replace").splitlines():
            _, at, kind, *_ = line.split(" ")
            mount = Path(at.replace("\\040", " "))
            if path.is_relative_to(mount) and len(mount.parts) >= longest:
                found, longest = kind, len(mount.parts)
    return found


def _sync_s(there: Path) -> float | None:
    """How long a small write takes to be on disk, into a file that has no name; None where there are none such."""
    with suppress(OSError):
        number = os.open(there, os.O_TMPFILE | os.O_WRONLY, 0o600)
        try:
            os.write(number, b"\0" * 4096)
            started_s = time.monotonic()
            os.fsync(number)
            return time.monotonic() - started_s
        finally:
            os.close(number)
    return None


async def _taken(config: Config, upstream: Upstream) -> tuple[int, ...]:
    """The admin ports, one for each worker, that something has which is no gateway, such as one that drains."""
    first, host = config.listen.admin_port, config.listen.admin_host
    ports = range(first, first + config.workers) if first else ()
    found = [one for one in ports if _meets(host, listening(one) or ())]
    return tuple([one for one in found if (await _answer(upstream, host, one))[1] is None])


def _meets(host: str, places: Iterable[str]) -> bool:
    """Whether who listens at any of these addresses is in the way of who is to listen at that one."""
    host = {"localhost": "127.0.0.1"}.get(host, host)
    return any(host == one or {host, one} & {"0.0.0.0", "::"} for one in places)


async def _at_port(config: Config, upstream: Upstream) -> tuple[Gateway, str]:
    """Who has the public port, and what keeps it from being ready if it is a gateway."""
    host, port = config.listen.host, config.listen.port
    if not port or listening(port) is None:
        return Gateway.NOBODY, ""
    reached, told = await _answer(upstream, host, port)
    if not reached:
        return Gateway.NOBODY, ""  # the port of another address
    if told is None:
        return Gateway.OTHERS, ""
    return (Gateway.READY, "") if told.ready else (Gateway.NOT_READY, "; ".join(told.why)[:200])


async def _answer(upstream: Upstream, host: str, port: int) -> tuple[bool, _Ready | None]:
    """Whether anybody answers at an address of this machine, and what, if it is a gateway."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    end = await upstream.fetch(Target("gateway", host, port), "/readyz", None, ANSWER_S)
    try:
        return end.reached, msgspec.json.decode(end.body, type=_Ready) if end.reached else None
    except UNREADABLE:
        return True, None


async def stores(addresses: Iterable[tuple[str, bool]]) -> list[Store]:
    """Look for page stores, by the address that an engine was given, and whether it runs on this machine."""
    found: dict[str, bool] = {}
    for address, local in addresses:
        found[address] = found.get(address, False) or local
    looks = [_store(address, local) for address, local in list(found.items())[:STORES_MAX]]
    return [one for part in await asyncio.gather(*looks) for one in part]


async def _store(address: str, local: bool) -> list[Store]:
    kind, _, rest = address.partition("://")
    if kind == "lmdb" and local:
        return [_directory(rest.partition("?")[0])]
    if kind != "redis":
        return []
    places = rest.partition("?")[0].partition("/")[0].split(",")
    return list(await asyncio.gather(*(_redis(place) for place in places[:STORES_MAX])))


def _directory(path: str) -> Store:
    return Store(path, "" if Path(path).is_dir() else "there is no such directory")


async def _redis(place: str) -> Store:
    """Whether somebody takes connections there; what is in it is for engines alone."""
    try:
        parts = urlsplit(f"redis://{place}")
        async with asyncio.timeout(STORE_S):
            _, writer = await asyncio.open_connection(parts.hostname or "", parts.port or REDIS_PORT)
        writer.transport.abort()
    except (OSError, ValueError, TimeoutError):
        return Store(place, f"took no connection within {STORE_S:g} s")
    return Store(place)
