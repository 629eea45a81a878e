"""Permits: how many requests of one tenant, model or agent may run at once, and at which server. Pure.

An agent that is asked may ask others before it answers, and holds its permit meanwhile. Were permits of all depths one
pool, parents could hold all of them while their children wait for one: nobody would ever go on. So every number is per
depth, and a request waits only for what requests as deep as itself hold. The deepest wait for nobody but those that
run; so they end, so those above them do, and so on up: a tree cannot block itself, whatever its width. A server lets
one request of each depth in even when it is full, for the same reason.

A permit names its server. When that is lost, all its permits come back at once; it gets a new generation then, and what
was given out under an older one is never given back twice.
"""

from collections.abc import Iterable
from typing import Any

from guards.concurrency import Aimd, TokenLimit
from guards.ranking import Ranking

DEPTHS_MAX = 16  # that agents may nest at all; how deep they do is configured
GATES_KEPT = 4096  # that nobody holds or waits at; those in use are bounded by the requests there are
GIVEN_BACK = -1  # a generation that no server has


class Gate:
    """One thing of which so many permits are given out at once. parked: who waits for one, by band and deadline."""

    __slots__ = ("limit", "parked", "taken")

    def __init__(self, limit: int) -> None:
        assert limit > 0
        self.limit, self.taken = limit, 0
        self.parked: Ranking[Any, tuple[float, float]] = Ranking()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to remember of it."""
        return not self.taken and not self.parked


class Server:
    """What runs at one server.

    requests: how many, at most requests_max; depths: how many of each depth. room: the tokens they take.
    held: what they hold of each gate. generation: which of its lives this is.
    """

    __slots__ = ("depths", "generation", "held", "requests", "requests_max", "room")

    def __init__(self, room: TokenLimit, requests_max: int) -> None:
        self.room, self.requests_max = room, requests_max
        self.generation = -1
        self.forget()

    def forget(self) -> None:
        """Begin anew, with nothing there."""
        self.generation += 1
        self.requests = self.room.tokens = 0
        self.depths = [0] * (DEPTHS_MAX + 1)
        self.held: dict[Gate, int] = {}

    def fits(self, tokens: int, depth: int) -> bool:
        """Whether one more request may come in. One of each depth always may."""
        if not self.depths[depth]:
            return True
        return self.requests < self.requests_max and self.room.fits(tokens)


NOWHERE = Server(TokenLimit(Aimd()), 1)


class Permit:
    """What one running request holds: of its gates, and tokens where it is at. Good until it is given or taken back."""

    __slots__ = ("at", "depth", "gates", "generation", "tokens")

    def __init__(self) -> None:
        """Nothing is held before it is taken."""
        self.at, self.generation = NOWHERE, GIVEN_BACK
        self.gates: tuple[Gate, ...] = ()
        self.depth = self.tokens = 0

    @property
    def good(self) -> bool:
        """Whether it is still held."""
        return self.generation == self.at.generation

    def grow(self, tokens: int) -> None:
        """It takes so many tokens by now. It never takes fewer than were foreseen."""
        if tokens > self.tokens:
            self.resize(tokens)

    def resize(self, tokens: int) -> None:
        """It will take so many tokens, more or fewer: it is better known now what there is to foresee."""
        if self.generation == self.at.generation:
            self.at.room.tokens += tokens - self.tokens
        self.tokens = tokens


class Permits:
    """All gates, and all servers. freed: gates at which somebody waits, and that have a permit again.

    requests_max: at one server; aimd: how its limit of tokens moves.
    """

    __slots__ = ("_aimd", "_gates", "_requests_max", "_servers", "_sweep_at", "freed")

    def __init__(self, aimd: Aimd, requests_max: int) -> None:
        self._aimd, self._requests_max = aimd, requests_max
        self._gates: dict[tuple[str, str, int, int], Gate] = {}
        self._servers: dict[str, Server] = {}
        self._sweep_at = GATES_KEPT
        self.freed: dict[Gate, None] = {}

    def gates(self, needs: Iterable[tuple[str, str, int, int]]) -> tuple[Gate, ...]:
        """The gates of all that one request needs. needs: what `gate` takes.

        Those that nobody is at are let go of before the first one: in between, it would be one of this very request's.
        """
        if len(self._gates) >= self._sweep_at:
            self._gates = {key: one for key, one in self._gates.items() if not one.idle}
            self._sweep_at = max(GATES_KEPT, 2 * len(self._gates))
        return tuple([self.gate(*one) for one in needs])

    def gate(self, kind: str, name: str, depth: int, limit: int) -> Gate:
        """The gate of a thing, for requests of one depth. limit: how many permits it has.

        It is this one for as long as somebody holds a permit or is parked, and may be another one later. Two limits
        under one name are two gates: if a gate's limit moved, each look could wake somebody, and looking never end.
        """
        gate = self._gates.get((kind, name, depth, limit))
        if gate is None:
            gate = self._gates[kind, name, depth, limit] = Gate(limit)
        return gate

    def lacks(self, needs: Iterable[tuple[str, str, int, int]]) -> bool:
        """Whether a request that needs such gates would lack one. needs: what `gate` takes. Changes nothing."""
        gates = map(self._gates.get, needs)
        return any(gate is not None and gate.taken >= gate.limit for gate in gates)

    def server(self, name: str) -> Server:
        """A server by its name. There are as many as are configured."""
        server = self._servers.get(name)
        if server is None:
            server = self._servers[name] = Server(TokenLimit(self._aimd), self._requests_max)
        return server

    def take(self, permit: Permit, gates: tuple[Gate, ...], server: Server, depth: int, tokens: int) -> None:
        """Give out a permit. Whether there is one is the caller's to ask; a request that moves takes it anyway."""
        for gate in gates:
            gate.taken += 1
            server.held[gate] = server.held.get(gate, 0) + 1
        server.requests += 1
        server.depths[depth] += 1
        server.room.tokens += tokens
        permit.gates, permit.at, permit.depth, permit.tokens = gates, server, depth, tokens
        permit.generation = server.generation

    def give_back(self, permit: Permit) -> bool:
        """End a permit; False where it had ended already, by whomever."""
        server = permit.at
        if permit.generation != server.generation:
            return False
        permit.generation = GIVEN_BACK
        for gate in permit.gates:
            if server.held[gate] == 1:
                del server.held[gate]
            else:
                server.held[gate] -= 1
            self._free(gate, 1)
        server.requests -= 1
        server.depths[permit.depth] -= 1
        server.room.tokens -= permit.tokens
        return True

    def recall(self, name: str) -> int:
        """End all permits of a server, which is lost or hangs; return how many."""
        server = self.server(name)
        count = server.requests
        for gate, taken in server.held.items():
            self._free(gate, taken)
        server.forget()
        return count

    def wake(self, gate: Gate) -> None:
        """Have those that wait at a gate looked at, if it has a permit."""
        if gate.parked and gate.taken < gate.limit:
            self.freed[gate] = None

    @property
    def taken(self) -> int:
        """Permits that are given out, of all gates together."""
        return sum(gate.taken for gate in self._gates.values())

    def _free(self, gate: Gate, count: int) -> None:
        gate.taken -= count
        assert gate.taken >= 0
        if gate.parked:
            self.wake(gate)


def lacking(gates: Iterable[Gate]) -> Gate | None:
    """The first gate that has no permit left; None where all have one."""
    for gate in gates:
        if gate.taken >= gate.limit:
            return gate
    return None
