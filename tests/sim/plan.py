"""What happens in one world: drawn from a seed, or written by hand."""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from guards.budget import Unit
from guards.money import DOLLAR, Price

PRICE = Price(2 * DOLLAR, 6 * DOLLAR, 2 * DOLLAR, 6 * DOLLAR)  # micro-dollars: 2 for a token of input, 6 of output
KINDS_OF_SERVER = ("stop", "mute", "freeze", "vanish", "crash", "sick", "rotten", "400", "429", "500", "503")
KINDS_OF_STREAM = ("cut", "fin", "tear", "hush", "comments", "error", "abort", "early", "garbage", "stray", "bare")
FAULTS_MAX = 6


@dataclass
class Fault:
    """Something goes wrong with a server: at a time, or once it has said so many tokens.

    for_s: until it is well again; None: for good.
    """

    kind: str
    server: int
    at_s: float | None = None
    after: int | None = None
    for_s: float | None = None


@dataclass
class Server:
    """How one server works, in seconds. head_early: the head of a stream does not wait for its first event.

    continues: it has the plugin, and continues streams by replay.
    """

    standby: bool = False
    ttft_s: float = 0.05
    interval_s: float = 0.02
    per_chunk: int = 1
    head_early: bool = True
    idle_s: float = 5.0
    continues: bool = False


@dataclass
class Asking:
    """One client and its request.

    tokens: of each of its answers. leave_s, leave_after: it hangs up then, or after so many writes.
    full: after these writes it must catch up first, for so many seconds.
    """

    at_s: float = 0.1
    account: int = 0
    chat: bool = True
    said: dict[str, Any] = field(default_factory=dict)
    tokens: int = 20
    stops: bool = False  # a stop string is taken from the middle of the answer
    leave_s: float | None = None
    leave_after: int | None = None
    full: dict[int, float] = field(default_factory=dict)


@dataclass
class Outage:
    """The ledger cannot be written for a while. at_commit: it shows only there."""

    at_s: float
    for_s: float
    at_commit: bool = False


@dataclass
class Plan:
    """One world. Times in seconds.

    budgets: tokens of each account; None: unbounded.
    shared: limits of the org that all accounts belong to, by unit; money in micro-dollars at `PRICE`.
    likely: how long answers are thought to be; short ones make for many top-ups. None: nothing is known.
    patience_s: what silence is suspicious, as if it had been learnt; None: nothing was learnt yet.
    crashes_s: when the gateway dies; it is started anew at once.
    stop_s: when it is told to stop, and has no time to give.
    linger_s: how long the gateway lives on after the last answer, with everybody well in the second half.
    """

    seed: int = 0
    servers: list[Server] = field(default_factory=lambda: [Server(), Server(standby=True)])
    asks: list[Asking] = field(default_factory=lambda: [Asking()])
    faults: list[Fault] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    budgets: list[int | None] = field(default_factory=lambda: [None])
    shared: dict[Unit, int] = field(default_factory=dict)
    crashes_s: list[float] = field(default_factory=list)
    stop_s: float | None = None
    linger_s: float = 0.0
    latency_s: float = 0.001
    torn: float = 0.0
    commit_s: float = 0.002
    likely: int | None = None
    lease_tokens: int = 256
    low_tokens: int = 64
    legs: int = 4
    hedges: int = 8
    hedges_burst: int = 64
    tokenizer: bool = True
    patience_s: float | None = None
    first_token_s: float = 6.0
    between_tokens_s: float = 3.0
    total_s: float = 20.0
    probe_every_s: float = 2.0
    breaker_calls: int = 20
    at_once: int | None = None  # requests at one server; others wait for it
    promised_ms: int | None = None  # until the first token; who will be late is refused


def drawn(seed: int) -> Plan:
    """Draw a world."""
    rng, apart = Random(seed), Random(~seed)  # what came to be drawn later: so that worlds stay as they were otherwise
    servers = [_server(rng, number) for number in range(rng.choice((1, 2, 2, 2, 3, 3)))]
    for server in servers:
        server.continues = apart.random() < 0.5
    budgets = [rng.choice((None, 20, 40, 60, 120, 400, 4000)) for _ in range(rng.choice((1, 1, 2)))]
    lease = rng.choice((1, 3, 8, 16, 256))
    return Plan(
        seed=seed,
        servers=servers,
        asks=[_asking(rng, len(budgets)) for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 6)))],
        faults=[_fault(rng, len(servers)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, FAULTS_MAX)))],
        outages=[_outage(rng)] if rng.random() < 0.15 else [],
        budgets=budgets,
        shared=_shared(rng) if rng.random() < 0.4 else {},
        crashes_s=[rng.expovariate(2.0) for _ in range(rng.choice((1, 1, 2)))] if rng.random() < 0.15 else [],
        stop_s=rng.expovariate(2.0) if rng.random() < 0.05 else None,
        linger_s=rng.choice((0.0, 0.0, 0.0, 0.0, 0.0, 12.0)),
        latency_s=rng.choice((0.0005, 0.001, 0.003, 0.02)),
        torn=rng.choice((0.0, 0.0, 0.1, 0.6)),
        commit_s=rng.choice((0.001, 0.003, 0.01, 0.1)),
        likely=rng.choice((None, 2, 5, 10)),
        lease_tokens=lease,
        low_tokens=rng.choice((0, lease // 4, lease // 2)),
        legs=rng.choice((1, 2, 3, 4, 4, 4)),
        hedges=rng.choice((0, 1, 8, 8)),
        hedges_burst=rng.choice((1, 64)),
        tokenizer=rng.random() < 0.75,
        patience_s=rng.choice((None, 0.25, 0.25, 0.05)),
        first_token_s=rng.choice((2.0, 6.0)),
        between_tokens_s=rng.choice((1.0, 3.0)),
        total_s=rng.choice((3.0, 15.0, 15.0)),
        probe_every_s=rng.choice((0.5, 2.0, 2.0)),
        breaker_calls=rng.choice((1, 2, 20)),
        at_once=rng.choice((None, None, 1, 3)),
        promised_ms=rng.choice((None, 800, 60_000)),
    )


def _shared(rng: Random) -> dict[Unit, int]:
    units = rng.sample(list(Unit), rng.choice((1, 1, 2, 4)))
    return {unit: rng.choice((15, 40, 100, 300)) * (4 if unit is Unit.MONEY else 1) for unit in units}


def _server(rng: Random, number: int) -> Server:
    return Server(
        standby=number > 0 and rng.random() < 0.5,
        ttft_s=rng.choice((0.001, 0.02, 0.1, 0.4)),
        interval_s=rng.choice((0.001, 0.01, 0.02, 0.05)),
        per_chunk=rng.choice((1, 1, 1, 2, 5)),
        head_early=rng.random() < 0.7,
        idle_s=rng.choice((5.0, 0.5, 0.05)),
    )


def _asking(rng: Random, accounts: int) -> Asking:
    chat = rng.random() < 0.7
    said: dict[str, Any] = {"stream": rng.random() < 0.85, "return_token_ids": rng.random() < 0.9}
    if not chat or rng.random() < 0.8:
        said["max_tokens"] = rng.choice((1, 5, 12, 20, 30, 60))
    if rng.random() < 0.2:
        said |= {"n": 2, "temperature": 0.7}
    if said["stream"] and rng.random() < 0.3:
        said["stream_options"] = {"include_usage": True}
    if not chat:
        said["prompt"] = rng.choice(("0", "0", ["0", "1"], [5, 6, 7])) if "n" not in said else "0"
    if chat and rng.random() < 0.05:
        said["logprobs"] = True  # cannot go on elsewhere
    leaves = rng.random()
    return Asking(
        at_s=rng.choice((0.0, 0.05, rng.uniform(0.0, 1.0))),
        account=rng.randrange(accounts),
        chat=chat,
        said=said,
        tokens=rng.choice((1, 3, 8, 15, 25, 40)),
        stops=rng.random() < 0.3,
        leave_s=rng.expovariate(2.0) if leaves < 0.12 else None,
        leave_after=rng.randint(1, 12) if 0.12 <= leaves < 0.2 else None,
        full={rng.randint(1, 15): rng.expovariate(1.0) for _ in range(2)} if rng.random() < 0.2 else {},
    )


def _fault(rng: Random, servers: int) -> Fault:
    kind = rng.choice(KINDS_OF_SERVER if rng.random() < 0.5 else KINDS_OF_STREAM)
    by_time = rng.random() < 0.3
    return Fault(
        kind,
        rng.randrange(servers),
        at_s=rng.uniform(0.0, 1.0) if by_time else None,
        after=None if by_time else rng.randint(0, 30),
        for_s=rng.choice((None, rng.uniform(0.05, 1.0), rng.uniform(0.5, 8.0))),
    )


def _outage(rng: Random) -> Outage:
    return Outage(rng.uniform(0.0, 1.0), rng.choice((0.05, 0.5, 3.0, 14.0)), rng.random() < 0.5)
