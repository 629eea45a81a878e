"""The whole of it: everybody is asked at once, and what was seen is judged."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from gateway import fleets
from gateway.config import Config
from gateway.config import Replica as Site
from gateway.doctor import families, home, servers
from gateway.doctor.facts import Finding, Server
from gateway.doctor.ledger import ledger
from gateway.doctor.surroundings import machine, stores
from gateway.doctor.visit import visit
from gateway.fleet.canary import Ask
from gateway.fleet.kin import Kin
from gateway.fleet.listener import Listener
from gateway.fleet.page_status import PageStatus
from gateway.fleet.replica import Replica
from gateway.release import release
from gateway.stream.leg_end import LegEnd
from gateway.stream.upstream import Upstream
from guards.kinship import WORDS

AT_ONCE_MAX = 32  # servers
SAY_AFTER_S = 1.0
COMPARE_S_MAX = 30.0  # for all models: each takes a few questions of 5 s at most

Say = Callable[[str], None]


async def findings(config: Config, say: Say) -> list[Finding]:
    """Look at everything that a configuration names. say: told now and then what is waited for."""
    upstream = Upstream(fleets.upstream_limits(config))
    try:
        told = asyncio.create_task(ledger(config))
        here = asyncio.create_task(machine(config, upstream))
        fleet = await _fleet(config, _asking(config, upstream), say)
        places = await stores((one.told.store, one.local) for one in fleet if one.told and one.told.store)
        books, ours = await told, await here
    finally:
        await upstream.close()
    models = [model.name for model in config.models]
    tokenizers = frozenset(model.name for model in config.models if model.tokenizer is not None)
    return [
        *(finding for one in fleet for finding in servers.judged(one, config.timeouts, release())),
        *families.compared(fleet, models, tokenizers),
        *home.of_stores(places),
        *home.of_ledger(books, config.ledger.replicas),
        *home.of_machine(ours),
    ]


def _asking(config: Config, upstream: Upstream) -> Ask:
    targets = fleets.targets(config)

    async def ask(name: str, path: str, body: bytes | None, timeout_s: float) -> LegEnd:
        return await upstream.fetch(targets[name], path, body, timeout_s, fleets.BYTES_MAX.get(path))

    return ask


async def _fleet(config: Config, ask: Ask, say: Say) -> list[Server]:
    """Visit all servers, then compare those of each model."""
    models = {site.name: model.name for model in config.models for site in model.replicas}
    targets, gate = fleets.targets(config), asyncio.Semaphore(AT_ONCE_MAX)

    async def one(site: Site) -> tuple[Server, PageStatus | None]:
        async with gate:
            return await visit(site, models.get(site.name), targets[site.name], ask)

    visits = {site.name: asyncio.create_task(one(site)) for site in config.replicas}
    await _waited(visits, say)
    return await _compared([visits[site.name].result() for site in config.replicas], ask, say)


async def _waited(tasks: dict[str, "asyncio.Task[tuple[Server, PageStatus | None]]"], say: Say) -> None:
    started_s = time.monotonic()
    left = set(tasks.values())
    while left:
        _, left = await asyncio.wait(left, timeout=SAY_AFTER_S)
        if left and time.monotonic() - started_s >= SAY_AFTER_S:
            names = [name for name, task in tasks.items() if task in left]
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            say(f"{len(tasks) - len(left)} of {len(tasks)} servers were looked at; waiting for {shown}")


async def _compared(visited: Sequence[tuple[Server, PageStatus | None]], ask: Ask, say: Say) -> list[Server]:
    """Ask those of one model the same, as a gateway does (fleet/kin.py). Those that are not well are left out."""
    replicas = []
    for server, status in visited:
        one = Replica(server.name, model=server.model)
        one.health = one.health.after(server.probe)
        one.serves, one.pages.status = server.serves or {}, status
        replicas.append(one)
    kin = Kin([one for one in replicas if one.health.up], ask, Listener(), time.monotonic)
    models = dict.fromkeys(model for server, _ in visited for model in server.models)
    say_late = asyncio.get_running_loop().call_later(SAY_AFTER_S, say, "comparing the servers of each model")
    try:
        async with asyncio.timeout(COMPARE_S_MAX):
            for model in models:
                await kin.look(model)
    except TimeoutError:
        say(f"gave up comparing after {COMPARE_S_MAX:g} s")
    finally:
        say_late.cancel()
    return [
        replace(
            server,
            apart=dict(one.apart),
            compared={
                model: tuple(WORDS[name] for name, known in traits._asdict().items() if known is not None)
                for model, traits in one.traits.items()
            },
        )
        for (server, _), one in zip(visited, replicas, strict=True)
    ]
