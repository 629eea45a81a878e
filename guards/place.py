"""A request as admission sees it: what it asks for, and its place, waiting or running. Pure."""

from collections.abc import Hashable
from typing import NamedTuple

from guards.fairness import Tenant
from guards.permits import GIVEN_BACK, NOWHERE, Gate, Permit
from guards.sla import Tier

BANDS = 4  # of priority; 0 goes first
MANY = 65_536  # permits that are as good as any number


class Rank(NamedTuple):
    """What a tier of keys comes to.

    priority: the band of its requests. weight, permits: see `Share`. promises: None where it makes none.
    """

    name: str
    priority: int = 1
    weight: float = 1.0
    permits: int = MANY
    promises: Tier | None = None


class Share(NamedTuple):
    """What one tenant may have of the servers. Made once for each key.

    weight: it is served so many times as much as one of weight 1, where both wait.
    permits: its requests that run at once, of each depth; MANY for any number. waiting: those that wait at once.
    """

    tenant: str
    weight: float = 1.0
    permits: int = MANY
    waiting: int = MANY


class Ask(NamedTuple):
    """What a request asks for.

    input_tokens, output_tokens: as well as they are known; of all its choices together.
    band: of priority; depth: 1 but for agents within agents. agent: its whole name under its key, if it has one.
    deadline_s: by when its first token is due; None where nothing was promised.
    about: whatever the caller needs to know of it, until it leaves.
    """

    share: Share
    model: str
    input_tokens: int
    output_tokens: int
    band: int = 0
    depth: int = 1
    agent: str | None = None
    deadline_s: float | None = None
    about: Hashable = None


class Place(Permit):
    """One request's place, from its arrival to its end; `Admission` alone changes it.

    It is its permit, too, for as long as it runs. server: where it runs, or has run; None while it waits.
    band: it rises while it waits. since_s: from when on its wait there counts. homes: where it waited before that.
    due_s: who of one tenant is first. until_s: when it is refused, if it still waits.
    waited_s: for its turn, once that has come.
    size: tokens that it will take of a server. woken: the gate whose permit it was woken for.
    tenant: its tenant's counter, in its band. charged: weighted tokens that it was charged, there and in its homes;
        owed: what it should be.
    parked: the gate that it waits at, if one of its own is what it lacks.
    input_tokens: as well as they are known by now. known: whether they are the true ones.
    """

    __slots__ = (
        "arrived_s", "ask", "band", "charged", "due_s", "homes", "input_tokens", "known", "owed", "parked", "runs",
        "server", "since_s", "size", "tenant", "until_s", "waited_s", "waits", "woken",
    )  # fmt: skip

    def __init__(self, ask: Ask, tenant: Tenant, now_s: float) -> None:
        self.at, self.generation = NOWHERE, GIVEN_BACK  # as `Permit` has it
        self.ask, self.tenant, self.arrived_s, self.band = ask, tenant, now_s, ask.band
        self.since_s = now_s
        self.homes: tuple[tuple[int, Tenant], ...] = ()  # by band
        self.input_tokens = ask.input_tokens
        self.size = ask.input_tokens + ask.output_tokens or 1
        self.due_s = self.until_s = self.waited_s = 0.0
        self.charged = self.owed = 0
        self.server: str | None = None
        self.parked: Gate | None = None
        self.woken: Gate | None = None
        self.waits = self.runs = self.known = False
