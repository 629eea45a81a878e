"""One request's hold on all budgets it is under, from the grant to the settlement."""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import structlog

from gateway.books.ledger.contract import NOTHING, About, Grant, Ledger, More, Place
from gateway.books.ledger.settlement import Settlement
from guards.budget import UNLIMITED, Limit, Meter, Unit
from guards.claim import Cover, Load, charges
from guards.money import Tokens
from guards.rate import Throttle

log = structlog.get_logger()

# For a top-up:
ASK_AGAIN_S = 0.1
BROKEN_S_MAX = 10.0  # while the ledger cannot be written
HELD_S_MAX = (
    1.0  # while others hold what is left and the stream is paused: longer, and those that share starve each other
)


ANYTHING = Cover((), (), None)  # of who has no limits


class Hold:
    """A block in which tokens may be delivered; leaving it, by whatever way, settles once at what was metered.

    Nobody waits for the settlement to be durable: until it is, the hold is, and covers more than was delivered.

    bound: of its prompts' tokens, which the grant covers.
    lease_tokens: how much output a top-up asks for.
    low_tokens: with this much left, the meter asks for a top-up.
    meter: counts what is delivered against what is leased.
    turn: limits of this one request; no top-up gets it beyond them.
    throttle: how fast its output may come; None for as fast as it does.
    longest: output tokens that no top-up gets it beyond either; to be lowered while it runs.
    cached, reasoning: how much of the input was cached, and of the output reasoning; None where
        there was some, and nobody told how much.
    failure: why the ledger could not be asked for more, at last; None where it could.
    about: what the journal says of the request.
    settlement: on its way, once the block was left.
    """

    __slots__ = (
        "_asking", "_grant", "_held", "_lease_tokens", "_ledger", "_left", "_throttle", "_turn", "_used", "about",
        "cached", "failure", "longest", "meter", "reasoning", "request_id", "settlement",
    )  # fmt: skip

    def __init__(
        self,
        ledger: Ledger,
        request_id: str,
        grant: Grant,
        bound: int,
        lease_tokens: int = 256,
        low_tokens: int = 64,
        turn: Sequence[Limit] = (),
        throttle: Throttle | None = None,
    ) -> None:
        self.request_id = request_id
        self._throttle = throttle
        self._turn = ANYTHING
        if turn:
            self._turn = Cover(tuple(one.unit for one in turn), tuple(one.amount for one in turn), grant.cover.price)
        self._held = self._within(grant.cover)
        if turn or throttle is not None:
            self.meter = Meter(self._held if throttle is None else self._by_now(throttle.most(0)), bound, low_tokens)
        else:
            self.meter = Meter(self._held, bound, low_tokens, grant.leased)
        self.about: About = NOTHING
        self.longest = UNLIMITED
        self.cached = 0
        self.reasoning: int | None = 0
        self._grant = grant
        self._used: Tokens | None = None
        self._ledger = ledger
        self._lease_tokens = lease_tokens
        self.failure: BaseException | None = None
        self.settlement: Settlement | None = None
        self._asking = False
        self._left = False

    @property
    def reasoning_is_dear(self) -> bool:
        """Whether it costs more than the rest of an answer."""
        price = self._grant.cover.price
        return price is not None and price.reasoning > price.output

    @property
    def used(self) -> Tokens:
        """What was delivered so far. What servers tell of it is believed as far as it can be true.

        Where they do not tell how much of it was reasoning, it is taken for the dearer kind.
        """
        if self._used is not None:
            return self._used
        meter, reasoning = self.meter, self.reasoning
        if reasoning is None:
            reasoning = meter.spent if self.reasoning_is_dear else 0
        return Tokens(meter.input, meter.spent, min(self.cached, meter.input), min(reasoning, meter.spent))

    @property
    def held(self) -> list[tuple[Place, int]]:
        """What each account holds for it, as far as it was told."""
        return list(zip(self._grant.places, self._held.amounts, strict=False))  # after them come the turn's

    def charge(self, unit: Unit) -> int:
        """What that is in a unit of limits."""
        return charges(self.used, self._grant.cover.price)[unit]

    def __enter__(self) -> Self:
        return self

    def top_up(self, then: Callable[[], None]) -> None:
        """Ask the ledger for another lease, unless one is being asked for; never waits.

        While the ledger cannot be written, or other requests hold what is left and may give it back, it is
        asked again, for a while. Only then does the meter hear that there is no more; if it was
        the ledger's fault, `failure` says so.

        then: called when the meter knows the answer, unless the block has been left by then. Not called
            for a call that found a top-up in flight: the first one's callback tells.
        """
        if not (self._asking or self._left):
            self._asking = True
            self._ask(then, asyncio.get_running_loop().time())

    def _ask(self, then: Callable[[], None], since_s: float) -> None:
        if self._left:
            return
        meter, held = self.meter, self._held.output(self.meter.wanted)
        if self._throttle is not None:
            most = self._throttle.most(meter.spent, hungry=meter.paused)
            if most < meter.least:  # too soon
                loop = asyncio.get_running_loop()
                loop.call_later(self._throttle.step_s, lambda: self._ask(then, loop.time()))
                return
            if min(held, self.longest) >= meter.least:
                asyncio.get_running_loop().call_soon(self._told, self._held, then)
                return
        most = min(max(held, meter.leased) + self._lease_tokens, self._turn.output(meter.wanted), self.longest)
        if most < meter.least:
            asyncio.get_running_loop().call_soon(self._told, None, then)
            return
        asked = self._ledger.extend(self.request_id, Load(meter.wanted, most), meter.least)
        asked.add_done_callback(lambda answer: self._answered(answer, then, since_s))

    def _answered(self, answer: asyncio.Future[More], then: Callable[[], None], since_s: float) -> None:
        self.failure = answer.exception()
        cover, of_others = (None, 0) if self.failure else answer.result()
        loop = asyncio.get_running_loop()
        if not (self.failure or self.meter.paused):
            since_s = loop.time()  # it flows yet: its patience has not begun
        patience_s = BROKEN_S_MAX if self.failure else HELD_S_MAX if of_others else 0.0
        if cover is None and patience_s and loop.time() - since_s <= patience_s:
            loop.call_later(ASK_AGAIN_S, self._ask, then, since_s)
        else:
            self._told(cover and self._within(cover), then)

    def _told(self, cover: Cover | None, then: Callable[[], None]) -> None:
        self._asking = False
        if self.failure:
            # The stream ends within the lease it has: nothing beyond it would be covered.
            log.warning("ledger.top_up_failed", request_id=self.request_id, error=str(self.failure))
        if not self._left:
            if cover is not None:
                self._held = cover
                if self._throttle is not None:
                    most = self._throttle.most(self.meter.spent, hungry=self.meter.paused)
                    cover = self._by_now(min(most, self.longest))
            self.meter.granted(cover)
            then()

    def _by_now(self, most: int) -> Cover:
        """What is held, and may have been delivered by now."""
        return self._held.beside(Cover((Unit.OUTPUT,), (most,), None))

    def _within(self, cover: Cover) -> Cover:
        """What is held, and what one request may have of it."""
        if self._turn is ANYTHING:
            return cover
        return cover.beside(self._turn)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert not self._left
        self._left = True
        used = self._used = self.used  # from now on
        self.settlement = Settlement(self._ledger, self.request_id, used, self.about)
