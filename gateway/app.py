"""The composition root: builds everything, once, and runs it until a signal says stop."""

import asyncio
import gc
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import uvloop

from gateway import fleets, replica_table, verdicts
from gateway.affinity import Affinity
from gateway.asides import Asides
from gateway.books.alert_book import AlertBook
from gateway.books.corrections import Corrections
from gateway.books.journal import Journal
from gateway.books.keys import Keys
from gateway.books.ledger.contract import Ledger
from gateway.books.ledger.leased import LeasedLedger
from gateway.books.tenants import Tenant
from gateway.books.vault.contract import Vault
from gateway.books.vault.engines import open_vault
from gateway.breakers import Breakers
from gateway.changes import Changes
from gateway.config import Config, is_loopback
from gateway.config_service import DEFAULT
from gateway.deadlines import Deadlines
from gateway.descriptors import clients_max
from gateway.desk import Desk
from gateway.fleet.replicas import Fleet
from gateway.flow import Flow
from gateway.forecasts import Forecasts
from gateway.housing import Housing
from gateway.http.admin import Admin
from gateway.http.admin_books import AdminBooks
from gateway.http.admin_moves import AdminMoves
from gateway.http.connection import ClientLimits
from gateway.http.door import Door
from gateway.http.drain import Drain
from gateway.http.edge import Edge
from gateway.http.scrub import Scrub
from gateway.http.webhook import Webhook
from gateway.ladder import Ladder
from gateway.ledgers import open_books
from gateway.quote import Quotes
from gateway.rates import Rates
from gateway.record import Records
from gateway.release import release
from gateway.salt import Salts
from gateway.stream.call import Bounds, Call
from gateway.stream.text import Decoder, LocalDecoder, RemoteDecoder, load_tokenizer
from gateway.stream.upstream import Upstream
from gateway.turns import Turns
from gateway.waiting import Waiting
from gateway.watch.alerts import Alerts
from gateway.watch.metrics import Metrics
from gateway.worker import Worker
from guards.admission import Admission
from guards.place import Rank
from guards.timeouts import UNSAID

log = structlog.get_logger()

ALERTS = "alerts.sqlite3"
KEYS_EVERY_S = 0.01  # under load many requests share one look at whether a key was made or revoked


def run(config: Config, worker: Worker | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Raises OSError where a port or the data directory cannot be had.

    worker: which one of many this process is.
    """
    uvloop.run(_main(config, worker))


async def _main(config: Config, worker: Worker | None) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM,) if worker is not None else (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
    if worker is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # see `workers.work`
    async with gateway(config, hurry, worker):
        await stop.wait()


@asynccontextmanager
async def gateway(config: Config, hurry: asyncio.Event, worker: Worker | None = None) -> AsyncIterator[None]:
    """Build a gateway, listen, and tear all of it down again, streams first and books last.

    hurry: set, it ends the time that streams have to come to an end by themselves.
    worker: which one of many this is; `config` is its own part then.
    """
    home = worker.whole.data if worker is not None else config.data  # of what workers share
    async with AsyncExitStack() as stack:
        clock = time.monotonic  # the loop's own stands still while a callback runs
        plan = config.breaker.plan if config.breaker is not None else None
        keys = Keys(home / "keys.db", config.keys, look_every_s=KEYS_EVERY_S, budgets=config.budgets, plan=plan)
        stack.callback(keys.close)
        vault = _vault(config, worker, stack)
        books = await stack.enter_async_context(open_books(config.data, keys, config.ledger, vault))
        journal, ledger, corrections = books.journal, books.ledger, Corrections(books.ledger, books.outbox)
        _refuse_open_doors(config, keys)
        metrics = Metrics(release())
        targets, upstream = fleets.targets(config), Upstream(fleets.upstream_limits(config))
        stack.push_async_callback(upstream.close)
        listener = verdicts.Verdicts(journal.append, metrics, upstream.abandon)
        ask = fleets.asking(targets, upstream, metrics)
        fleet = fleets.fleet(config, ask, metrics, clock, listener)
        stack.callback(fleet.close)
        inspector = fleets.inspector(config, ask, fleet, clock, listener)
        kin = fleets.kin(ask, fleet, clock, listener)
        asides = Asides(fleet, upstream, targets)
        deadlines = _deadlines(config)
        alerts = listener.alerts = _alerts(config, stack, journal, ledger, metrics)
        breakers = _breakers(config, ledger, deadlines, alerts, metrics)
        quotes = _quotes(config, ledger, fleet, asides, breakers)
        charged = alerts.charged if config.alerts is not None else None
        records = Records(journal, metrics, clock, quotes.lengths.note, charged)
        rates = Rates(quotes.lengths, time.monotonic_ns)
        turns = _turns(config, fleet, metrics, clock, listener)
        turns.ladder = _ladder(config, fleet, quotes)
        housing = Housing(config, home, fleet, inspector, upstream, targets, turns, listener, metrics, clock)
        stack.callback(housing.close)
        flow = Flow(rates, quotes, turns, fleet, upstream, targets, records, deadlines, clock)
        drain = Drain(deadlines, config.timeouts.drain_s, hurry)

        def ready() -> list[str]:
            said = {"the journal cannot be written": journal.healthy, "the ledger cannot be written": ledger.healthy}
            said["the gateway is stopping"] = not drain.begun
            leases = ledger.not_ready() if isinstance(ledger, LeasedLedger) else []
            return fleet.not_ready() + leases + [why for why, fine in said.items() if not fine]

        salts = None if config.share_prefix_cache else Salts(home)
        edge = _edge(config, flow, fleet, keys, salts, ready, metrics)
        changes = Changes(keys.news, ledger, deadlines, clock, corrections.carry_out)
        works = [fleet.run(), inspector.run(), kin.run(), changes.run(), breakers.run(), alerts.run(), turns.run()]
        for work in [*works, housing.run(), *_leases(ledger, deadlines)]:
            stack.callback(asyncio.create_task(work).cancel)
        listen, clients = config.listen, _clients(config)
        shown = partial(_replicas, config, fleet, clock, listener)
        desk = _desk(config, home, corrections, records, keys, shown, turns, housing)
        stack.callback(desk.close)
        admin = Admin(metrics, ready, config.admin_key_sha256, listen.admin_host, desk)
        side_door = await Door.open(admin.handle, listen.admin_host, listen.admin_port, clients)
        stack.push_async_callback(side_door.clear, 0.0)
        door = await Door.open(edge.handle, listen.host, listen.port, clients, shared=worker is not None)
        stack.push_async_callback(drain.run, edge, door)
        if isinstance(ledger, LeasedLedger):
            ledger.serves = True
        housing.begin()
        _say_hello(config, keys)
        _settle_memory()
        yield


def _vault(config: Config, worker: Worker | None, stack: AsyncExitStack) -> Vault | None:
    """Where this gateway's rights come from; None where it has all budgets to itself."""
    if worker is None and config.ledger.url is None:
        return None
    vault = open_vault(config if worker is None else worker.whole)
    stack.push_async_callback(vault.close)
    return vault


def _leases(ledger: Ledger, deadlines: Deadlines) -> Iterator[Coroutine[Any, Any, None]]:
    """What keeps leases, where there are any; requests that outlive theirs are ended."""
    if isinstance(ledger, LeasedLedger):
        ledger.on_lapse = deadlines.lapse
        yield ledger.run()


def _replicas(
    config: Config, fleet: Fleet, clock: Callable[[], float], listener: verdicts.Verdicts
) -> list[dict[str, Any]]:
    return replica_table.shown(fleet.all(), clock(), config.health.flapping, listener.lodged())


def _desk(
    config: Config,
    home: Path,
    corrections: Corrections,
    records: Records,
    keys: Keys,
    replicas: Callable[[], list[dict[str, Any]]],
    turns: Turns,
    housing: Housing,
) -> AdminBooks:
    open_keys = partial(Keys, home / "keys.db", config.keys, budgets=config.budgets)
    prices = {one.model: one.price for one in config.prices}
    desk = Desk(home, open_keys, corrections, records)
    moves = AdminMoves(housing.moves, housing.sessions)
    return AdminBooks(desk, prices, keys.look_again, replicas, turns.shown, moves)


def _quotes(config: Config, ledger: Ledger, fleet: Fleet, asides: Asides, breakers: Breakers) -> Quotes:
    limits = config.limits
    return Quotes(
        ledger,
        fleet,
        asides,
        _decoders(config, asides),
        prices={one.model: one.price for one in config.prices},
        lease_tokens=limits.lease_tokens,
        low_tokens=limits.lease_low_tokens,
        legs_max=limits.legs,
        hedges_max=limits.hedges,
        breakers=breakers,
        contexts={one.name: one.context_tokens for one in config.models if one.context_tokens is not None},
    )


def _turns(
    config: Config, fleet: Fleet, metrics: Metrics, clock: Callable[[], float], listener: verdicts.Verdicts
) -> Turns:
    """Build who says whose turn it is. Predictions are made where something is promised."""
    said, ranks = config.admission, {one.name: one.rank for one in config.tiers}
    promising = any(one.promises is not None for one in ranks.values())
    turns = Turns(
        fleet,
        ranks,
        ranks.get(DEFAULT, Rank(DEFAULT)),
        clock,
        forecasts=Forecasts(fleet, clock) if promising else None,
        fair_by=said.fair_by,
        scheduled=frozenset(one.name for one in config.models if one.scheduled),
        refuse_late=said.refuse_late,
        sessions=config.routing.sessions,
        judged=metrics.promised,
        waited=metrics.waited,
    )
    listener.forecasts = turns.forecasts
    if said.on:
        admission = Admission(said.bounds(config.limits.requests_in_flight), turns.route, turns.first_token_s)
        turns.waiting = Waiting(admission, clock)
        metrics.waiting(partial(len, turns.waiting))
        listener.waiting = turns.waiting
    return turns


def _ladder(config: Config, fleet: Fleet, quotes: Quotes) -> Ladder | None:
    if not config.degrade.steps:
        return None
    said = config.degrade
    return Ladder(fleet, said.steps, said.answer_tokens, _cheaper(config), quotes.limit, quotes.lengths.q90)


def _cheaper(config: Config) -> dict[str, str]:
    return {one.name: one.cheaper for one in config.models if one.cheaper is not None}


def _breakers(config: Config, ledger: Ledger, deadlines: Deadlines, alerts: Alerts, metrics: Metrics) -> Breakers:
    prices = {one.model: one.price for one in config.prices}
    turned, cheaper = alerts.turned, _cheaper(config)
    breakers = Breakers(ledger, deadlines.end, turned, time.monotonic, cheaper=cheaper, prices=prices)
    metrics.breakers(breakers.counts)
    return breakers


def _alerts(config: Config, stack: AsyncExitStack, journal: Journal, ledger: Ledger, metrics: Metrics) -> Alerts:
    """Build who tells of spending, and the way to the receiver. Raises OSError where the book cannot be opened."""
    if config.alerts is None:
        return Alerts(journal.append, metrics, time.time)
    hook = config.alerts.webhook
    book = AlertBook(config.data / ALERTS, time.time, heard=hook is not None)
    stack.callback(book.close)
    alerts = Alerts(journal.append, metrics, time.time, shares=config.alerts.at, balance=ledger.balance, book=book)
    if hook is not None:
        secret = hook.secret.get_secret_value()
        sender = Webhook(hook.url, secret, allow_private=hook.allow_private, done=book.sent, outcome=metrics.webhook)
        for alert in book.unsent():
            sender.send(alert)
        alerts.send = sender.send
        stack.callback(asyncio.create_task(sender.run()).cancel)
    return alerts


def _refuse_open_doors(config: Config, keys: Keys) -> None:
    """Without any key everybody may spend; that is for this machine only."""
    if not keys.any_configured and not is_loopback(config.listen.host):
        raise OSError(
            f"listening on {config.listen.host} needs API keys: make one with «holdfast keys create», or use 127.0.0.1"
        )


def _settle_memory() -> None:
    """Have the collector pass over what lives as long as the gateway, and look at the rest less often.

    What a request leaves behind has few cycles; by default every 700 new objects are searched for some.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


def _say_hello(config: Config, keys: Keys) -> None:
    listen = config.listen
    log.info(
        "gateway.listening",
        url=f"http://{listen.host}:{listen.port}/v1",
        metrics=f"http://{listen.admin_host}:{listen.admin_port}/metrics",
        replicas=[replica.name for replica in config.replicas],
        data=str(config.data),
    )
    if not keys.any_configured:
        log.warning("gateway.open", why="no API key was ever made: anyone on this machine may use it, unbounded")


def _bounds(config: Config) -> Bounds:
    limits = config.limits
    return Bounds(
        limits.choices,
        limits.prompts,
        limits.stop_strings,
        config.allow_media_urls,
        limits.agent_depth,
        limits.agent_share,
    )


def _clients(config: Config) -> ClientLimits:
    timeouts, limits = config.timeouts, config.limits
    return ClientLimits(
        head_bytes=limits.head_bytes,
        head_s=timeouts.head_s,
        idle_s=timeouts.client_idle_s,
        stall_s=timeouts.client_stall_s,
        connections=clients_max(limits.client_connections),
    )


def _edge(
    config: Config,
    flow: Flow,
    fleet: Fleet,
    keys: Keys,
    salts: Salts | None,
    ready: Callable[[], list[str]],
    metrics: Metrics,
) -> Edge:
    limits, routing = config.limits, config.routing
    affinity = Affinity(sessions=routing.sessions, prefixes=routing.prefixes, prefix_bytes=routing.prefix_bytes)

    def salt(tenant: Tenant) -> str | None:
        return salts.of(tenant) if salts is not None else None

    return Edge(
        flow,
        fleet,
        keys,
        bounds=_bounds(config),
        body_bytes_max=limits.body_bytes,
        body_s=config.timeouts.body_s,
        client_buffer_bytes=limits.client_buffer_bytes,
        keepalive_s=config.timeouts.keepalive_s,
        requests_max=limits.requests_in_flight,
        budget_status=config.budget_status,
        scrub=Scrub(replica.host for replica in config.replicas),
        salt=salt,
        near=affinity.near,
        ready=ready,
        on_refused=metrics.refused,
    )


def _decoders(config: Config, asides: Asides) -> Callable[[Call], tuple[Callable[[], Decoder], bool]]:
    """How text is made from ids: by the model's own tokenizer where it is configured, else by a replica."""
    tokenizers = {model.name: load_tokenizer(model.tokenizer) for model in config.models if model.tokenizer is not None}

    def decoders(call: Call) -> tuple[Callable[[], Decoder], bool]:
        tokenizer = tokenizers.get(call.model)
        if tokenizer is not None:
            return partial(LocalDecoder, tokenizer, call.skip_special), False
        return partial(RemoteDecoder, partial(asides.text, call.model), singly=bool(call.stop)), True

    return decoders


def _deadlines(config: Config) -> Deadlines:
    models, tiers = ({one.name: one.timeouts.times for one in many} for many in (config.models, config.tiers))
    return Deadlines(config.timeouts.total_s, config.timeouts.session_s, models, tiers, tiers.get(DEFAULT, UNSAID))
