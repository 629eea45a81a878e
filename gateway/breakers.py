"""Breakers on cost: what each limit of each model burns, who may come in while it burns, and who must end.

A request that is under a watched limit is looked up when it comes and counted when it goes. In between, and for all of
them together, somebody looks four times a second: at what each has spent since, and at what that makes of the breakers.
They are this process's own: what a restart forgets is learnt again in minutes, and budgets hold meanwhile.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from typing import NamedTuple

import structlog

from gateway.books.ledger.contract import Ledger
from gateway.books.tenants import Tenant
from gateway.circuit import FREE, MINOR, TOO_LITTLE, Circuit, Name, Path, Spent, Watch, path
from gateway.deadlines import Verdict
from gateway.slices import in_turns
from gateway.stream.call import Call
from guards.budget import Unit, Window
from guards.burn import State, Turn, Watched
from guards.money import Price
from guards.refusal import Ending, Reason, Refused

log = structlog.get_logger()

LOOK_S = 0.25  # so that a runaway's streams end well within a second of the trip
BREAKERS_MAX = 8192  # in use at once; beyond it a limit goes unwatched, and holds all the same
PATHS_MAX = 4 * BREAKERS_MAX
FORGET_S = 60.0  # between two looks for breakers that have nothing to remember
LEVELS = ("key", "user", "team", "org")  # leaves first


class Standing(NamedTuple):
    """How one breaker stands, for people. rate: how fast it burns, 1 is just to the window's end."""

    scope: str
    unit: Unit
    window: Window
    model: str
    state: State
    rate: float
    running: int
    open_s: float


class Breakers:
    """Lets requests in, or not, and ends those that must not go on.

    cheaper: which model answers in whose stead; prices: of the models that have one.
    end: ends running requests, see `Deadlines.end`; turned: told of every change of a state.
    clock: monotonic, in seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        end: Callable[[Set[object], Verdict], int],
        turned: Callable[[Turn], None],
        clock: Callable[[], float],
        *,
        cheaper: Mapping[str, str],
        prices: Mapping[str, Price],
    ) -> None:
        self._ledger, self._end, self._turned, self._clock = ledger, end, turned, clock
        self._cheaper, self._prices = cheaper, prices
        self._circuits: dict[Name, Circuit] = {}
        self._paths: dict[tuple[str, str], Path] = {}  # of a key's requests for a model
        self._running: dict[Watch, None] = {}
        self._spent: Spent = {}  # since the last look
        self._touched: dict[Circuit, None] = {}  # since the last look, or not closed
        self._asking: set[asyncio.Future[None]] = set()
        self._full = False
        self._forgot_s = clock()

    # ---------------------------------------------------------------- requests

    def enter(self, call: Call, tenant: Tenant) -> Watch:
        """Say how a request may be served; where a cheaper model is to answer, the call names that one from now on.

        Raises Refused (BREAKER).
        """
        if not tenant.breakers:
            return FREE
        asked = call.model
        for _ in range(len(self._cheaper) + 1):
            through = self._path(call.model, tenant)
            states = [circuit.breaker.state for circuit in through.circuits]
            if State.OPEN in states:
                raise self._refusal(through.circuits)
            if State.CHEAPER not in states or call.model not in self._cheaper:
                break
            call.model = call.body["model"] = self._cheaper[call.model]
        for circuit in through.circuits:
            circuit.entered = True
        return Watch(self, through, call.choices, asked, call.model)

    def begin(self, watch: Watch) -> None:
        """Its hold is there. Raises Refused where a breaker has opened since it came."""
        for at, circuit in enumerate(watch.circuits):
            state = circuit.breaker.state
            if state is State.OPEN:
                raise self._refusal(watch.circuits)
            if state is State.HALF_OPEN and not watch.passed(at):
                raise self.refusal(circuit, TOO_LITTLE)
            if state in MINOR:
                watch.shorten(circuit.watched.plan.answer_tokens)
        self._running[watch] = None
        for circuit in watch.circuits:
            self._circuits.setdefault(circuit.name, circuit)  # it may have been let go of while the hold was waited for
            circuit.running[watch] = None

    def leave(self, watch: Watch) -> None:
        """It has ended: count what it spent at last."""
        del self._running[watch]
        watch.gather(self._spent, last=True)  # noted at the next look, with that of others
        for circuit in watch.circuits:
            del circuit.running[watch]

    def refusal(self, circuit: Circuit, why: str) -> Refused:
        """What a request is told that a breaker keeps out."""
        wait_s = circuit.breaker.retry_after_s(self._clock())
        detail = f"breaker {circuit.breaker.state}: {circuit.name.scope}, model {circuit.name.model!r}: {why}; "
        return Refused(Reason.BREAKER, f"{detail}try again in {wait_s:.0f} s", retry_after_s=wait_s)

    def _refusal(self, circuits: Iterable[Circuit]) -> Refused:
        circuit = next(one for one in circuits if one.breaker.state is State.OPEN)  # the widest decides
        return self.refusal(circuit, circuit.why)

    def _path(self, model: str, tenant: Tenant) -> Path:
        """The breakers of a request for this model. What is free burns nothing."""
        at = tenant.key_id, model
        known = self._paths.get(at)
        if known is not None and known.watched is tenant.breakers:
            return known
        price, found = self._prices.get(model), []
        for one in tenant.breakers:
            unit, window = one.line.limit.unit, one.line.limit.window
            if unit is Unit.MONEY and (price is None or price.free):
                continue
            name = Name(one.scope, unit, window, model)
            circuit = self._circuits.get(name) or self._made(name, one)
            if circuit is not None:
                circuit.watched = one
                found.append(circuit)
        if len(self._paths) >= PATHS_MAX:
            self._paths.clear()
        made = self._paths[at] = path(tenant.breakers, found)
        return made

    def _made(self, name: Name, watched: Watched) -> Circuit | None:
        if len(self._circuits) >= BREAKERS_MAX and self._clock() - self._forgot_s >= LOOK_S:
            self._forget()
        if len(self._circuits) >= BREAKERS_MAX:
            if not self._full:  # one line for each time
                log.error("breakers.full", unwatched=name.scope, most=BREAKERS_MAX)
            self._full = True
            return None
        self._full = False
        circuit = self._circuits[name] = Circuit(name, watched)
        return circuit

    def _forget(self) -> None:
        """Let go of breakers that have nothing to remember."""
        now_s = self._forgot_s = self._clock()
        for name, circuit in list(self._circuits.items()):
            if not (circuit.running or circuit.entered or circuit in self._touched) and circuit.breaker.idle(now_s):
                del self._circuits[name]
            circuit.entered = False
        self._paths.clear()

    # ---------------------------------------------------------------- looks

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception as error:  # a bug must not be the end of all breakers
                log.error("breakers.fault", exc_info=error)

    async def look(self) -> None:
        """Look once: at what was spent, then at what that means, leaves first."""
        async for watch in in_turns(list(self._running)):
            if watch in self._running:
                watch.gather(self._spent)
        spent, self._spent = self._spent, {}
        async for (circuit, leaves), (money, largest) in in_turns(spent.items()):
            circuit.breaker.note(money, self._clock(), request=largest, leaves=leaves)
            self._touched[circuit] = None
        if self._clock() - self._forgot_s >= FORGET_S:
            self._forget()
        leaves_first = sorted(self._touched, key=lambda circuit: LEVELS.index(circuit.level))
        async for circuit in in_turns(leaves_first):
            self._see(circuit, self._clock())
        for circuit in leaves_first:
            if circuit.breaker.state is State.CLOSED:
                self._touched.pop(circuit, None)

    def _see(self, circuit: Circuit, now_s: float) -> None:
        """Have a breaker decide; but where one leaf is most of the fire, that one's opens instead."""
        breaker, before = circuit.breaker, circuit.breaker.state
        if before not in (State.OPEN, State.HALF_OPEN):
            tier = breaker.alarm(now_s, circuit.budget)
            if tier is not None and tier.state is State.OPEN and (leaf := self._blamed(circuit, now_s)) is not None:
                self._open(leaf, now_s, f"it is most of what burns of {circuit.limit}")
        after = circuit.look(now_s)
        if after is State.OPEN and before is not State.OPEN:
            circuit.why = f"{circuit.limit} burns {breaker.rate(circuit.budget):.1f} times too fast"
        self._turn(circuit, before, now_s)

    def _blamed(self, circuit: Circuit, now_s: float) -> Circuit | None:
        """The narrowest breaker below this one through which most of its fire goes."""
        blamed = circuit.breaker.blamed(now_s)
        if not blamed:
            return None
        model = circuit.name.model
        found = [one for one in self._circuits.values() if one.name.model == model and one.name.scope in blamed]
        return min(found, key=lambda one: LEVELS.index(one.level), default=None)

    def _open(self, circuit: Circuit, now_s: float, why: str) -> None:
        before = circuit.breaker.state
        if before is not State.OPEN:
            circuit.why = why
            circuit.breaker.trip(now_s)
            self._turn(circuit, before, now_s)

    def _turn(self, circuit: Circuit, before: State, now_s: float) -> None:
        """See to what a change of state means for what runs, and tell of it."""
        after, ended = circuit.breaker.state, 0
        if after is before:
            return
        self._touched[circuit] = None
        if after is State.OPEN:
            for other in self._circuits.values():
                if other.name.model == circuit.name.model and other.name.scope != circuit.name.scope:
                    other.breaker.strike(circuit.name.scope, now_s)
            ended = self._end(set(circuit.running), (Ending.BREAKER, self.refusal(circuit, circuit.why).detail))
            asking = asyncio.ensure_future(self._ask(circuit))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        elif after in MINOR:
            for watch in circuit.running:
                watch.shorten(circuit.watched.plan.answer_tokens)
        scope, _, _, model = circuit.name
        self._turned(Turn(scope, circuit.watched.line, model, before, after, circuit.why, ended))

    async def _ask(self, circuit: Circuit) -> None:
        """How much is left of a limit: a pass is a part of that."""
        with suppress(Refused):  # then it is a part of all of it, and the budget bounds it
            circuit.left = (await self._ledger.balance(*circuit.watched.line)).payable

    # ---------------------------------------------------------------- operators

    def states(self) -> list[Standing]:
        """Every breaker that is in use, in the order of their names."""
        now_s = self._clock()
        return [
            Standing(*name, one.breaker.state, one.breaker.rate(one.budget), len(one.running), one.wait_s(now_s))
            for name, one in sorted(self._circuits.items())
        ]

    def counts(self) -> dict[str, int]:
        """How many breakers are in each state."""
        found = Counter(one.breaker.state.value for one in self._circuits.values())
        return {state.value: found[state.value] for state in State}

    def trip(self, scope: str, model: str | None = None) -> int:
        """Open a scope's breakers by hand, of one model or of all; how many there were. Whoever runs is ended."""
        found = self._of(scope, model)
        for circuit in found:
            self._open(circuit, self._clock(), "it was tripped by hand")
        return len(found)

    def reset(self, scope: str, model: str | None = None) -> int:
        """Close a scope's breakers by hand, and forget what they saw; how many there were."""
        found = self._of(scope, model)
        for circuit in found:
            before, circuit.why = circuit.breaker.state, "it was reset by hand"
            circuit.breaker.reset()
            self._turn(circuit, before, self._clock())
        return len(found)

    def _of(self, scope: str, model: str | None) -> list[Circuit]:
        return [one for name, one in self._circuits.items() if name.scope == scope and model in (None, name.model)]
