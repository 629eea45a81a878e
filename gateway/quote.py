"""What a request may cost, and the hold that covers it, before a token is computed.

A hold is smaller than the worst case and topped up as the answer streams. `max_tokens` is fixed at
dispatch and cannot be extended on a running request, so it is what the whole budget could pay.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from random import getrandbits
from typing import NamedTuple

from gateway.asides import Asides
from gateway.books.ledger.contract import Grant, Ledger
from gateway.books.ledger.hold import Hold
from gateway.books.tenants import Tenant
from gateway.breakers import Breakers
from gateway.circuit import FREE, Watch
from gateway.context import FITS, NO_LIMITS, Context, Contexts, Headers
from gateway.fleet.replicas import Fleet
from gateway.ladder import AS_ASKED, Eased
from gateway.rates import BYTES_PER_TOKEN
from gateway.stream.call import Call
from gateway.stream.seams import Terms
from gateway.stream.text import Decoder
from guards.budget import UNLIMITED, Account
from guards.claim import Load, Part, lease, worded
from guards.estimate import AnswerLengths
from guards.money import Price
from guards.rate import Throttle
from guards.refusal import Ending, Reason, Refused

WINDOW_DEFAULT = 1 << 17  # tokens an answer may take where neither client nor server says
DRAWN = partial(getrandbits, 31)  # a seed
NO_PRICES: Mapping[str, Price] = {}


def prompt_likely(call: Call, window: int | None) -> int:
    """Tokens that all prompts of a request will take, about.

    window: of its model, which each prompt fits into, however long its body: that may be padded, or hold images. None
        where no server told it.
    """
    return min(call.body_bytes // BYTES_PER_TOKEN + 1, (window or WINDOW_DEFAULT) * len(call.prompts))


class Quote(NamedTuple):
    """A committed hold, the terms that go upstream with the request, the breakers' watch over it, and how it fits.

    headers: what the client is told of it; about: the same for the journal.
    eased: what was taken from it since servers are busy. model: that answers.
    """

    hold: Hold
    terms: Terms
    watch: Watch
    context: Context = FITS
    eased: Eased = AS_ASKED
    model: str = ""

    @property
    def headers(self) -> Headers:
        told = self.watch.headers
        if self.eased is not AS_ASKED:
            told = self.eased.headers(self.watch.answer_tokens, self.model)
        return told + self.context.headers

    @property
    def about(self) -> Mapping[str, object]:
        told = self.watch.about
        if self.eased is not AS_ASKED:
            told = self.eased.about(told, self.model)
        return {**told, **self.context.about} if self.context is not FITS else told


class Quotes:
    """Makes quotes. prices: of the models that have one. contexts: limits of models' prompts below their windows.

    lease_tokens, low_tokens: of a top-up; legs_max, hedges_max: servers tried per request.
    """

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        asides: Asides,
        decoders: Callable[[Call], tuple[Callable[[], Decoder], bool]],
        *,
        prices: Mapping[str, Price] = NO_PRICES,
        lease_tokens: int,
        low_tokens: int,
        legs_max: int,
        hedges_max: int = 8,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        breakers: Breakers | None = None,
        contexts: Mapping[str, int] = NO_LIMITS,
        draw: Callable[[], int] = DRAWN,
    ) -> None:
        """draw: a seed for an answer whose client gave none."""
        self._draw = draw
        self._contexts = Contexts(fleet, asides, contexts)
        self._breakers = breakers
        self._ledger, self._fleet, self._asides, self._decoders = ledger, fleet, asides, decoders
        self.prices = prices
        self._lease_tokens, self._low_tokens, self._legs_max = lease_tokens, low_tokens, legs_max
        self._hedges_max, self._clock_ns = hedges_max, clock_ns
        self.lengths = AnswerLengths()

    def limit(self, model: str) -> int | None:
        """How long a prompt of a model may be; None where nobody knows."""
        return self._contexts.longest(model)

    async def hold(self, call: Call, tenant: Tenant, eased: Eased = AS_ASKED) -> Quote:
        """Hold budget for a request. Where a cheaper model is to answer, the call names that one from now on.

        eased: what was taken from it before.

        Raises Refused: CONTEXT, BREAKER, BUDGET, HELD, UNBOUNDED, UNPRICED, BOOKS, or what /tokenize refuses.
        """
        watch = FREE if self._breakers is None else self._breakers.enter(call, tenant)
        try:
            if eased is AS_ASKED and self._contexts.limit(call, tenant) is None:  # as is mostly so
                return await self._hold(call, tenant, watch)
            context = await self._contexts.fit(call, tenant)
            quote = await self._hold(call, tenant, watch, eased.answer_tokens)
            terms = quote.terms
            if terms.capped and terms.max_tokens == eased.answer_tokens < watch.answer_tokens:
                terms = terms._replace(cap=Ending.SHORTENED)
            terms = terms._replace(asked_likely=eased.likely)
            return quote._replace(terms=terms, context=context, eased=eased, model=call.model)
        except BaseException:
            watch.give_back()
            raise

    async def _hold(self, call: Call, tenant: Tenant, watch: Watch, most: int = UNLIMITED) -> Quote:
        window = self._fleet.window(call.model) or WINDOW_DEFAULT
        wanted = min(call.max_tokens or window, window)
        asked = min(wanted, watch.answer_tokens, most)
        if tenant.limited and call.has_media:
            raise Refused(Reason.UNBOUNDED, "Media cannot be counted before it is computed; this key has a budget.")
        if tenant.pays and call.model not in self.prices:
            raise Refused(Reason.UNPRICED, f"The model {call.model!r} has no price, and this key's budget is in money.")
        prompt = call.prompt_bound
        if watch.on_trial:
            passes = watch.passes(Load(prompt, asked * call.choices), self.prices.get(call.model))
            tenant = replace(tenant, turn=(*tenant.turn, *passes))
        if self._within_turn(call, tenant, prompt, asked) < asked:
            return await self._tight(call, tenant, watch, wanted, asked)
        try:
            grant = await self._open(call, tenant, prompt, asked, whole=True)
            return self._quote(call, tenant, watch, grant, prompt, asked, wanted)
        except Refused as refused:
            if refused.reason not in (Reason.BUDGET, Reason.HELD):
                raise
        return await self._tight(call, tenant, watch, wanted, asked)

    async def _tight(self, call: Call, tenant: Tenant, watch: Watch, wanted: int, asked: int) -> Quote:
        """Money is tight: the cheap bound may refuse what could be paid, so the prompt is counted exactly."""
        prompt = await self._asides.count(call)
        asked = self._within_turn(call, tenant, prompt, asked)
        if asked < 1 and watch.on_trial:
            raise watch.too_little()
        if asked < 1:
            said = " and ".join(worded(one.unit, one.amount) for one in tenant.turn)
            detail = f"budget exceeded: this request needs more than one turn of key:{tenant.key_id} may use, {said}"
            raise Refused(Reason.BUDGET, detail)
        grant = await self._open(call, tenant, prompt, asked, whole=False)
        # A stream may be topped up to all that the budget could pay; a plain answer is paid for at once.
        most = min(asked, grant.payable if call.stream else grant.leased // call.choices)
        return self._quote(call, tenant, watch, grant, prompt, most, wanted)

    def _within_turn(self, call: Call, tenant: Tenant, prompt: int, asked: int) -> int:
        """How many tokens each choice may have by what one turn may use, up to what is asked for."""
        if not tenant.turn:
            return asked
        parts = [Part(limit.unit, Account(limit.amount)) for limit in tenant.turn]
        return lease(parts, Load(prompt, asked * call.choices), self.prices.get(call.model)) // call.choices

    async def _open(self, call: Call, tenant: Tenant, prompt: int, asked: int, *, whole: bool) -> Grant:
        """Hold what the request will likely take; `whole`: only if its worst case could be paid too.

        Where money is tight it is let in only if its likely end is paid for, or if nobody else holds any of what is
        left: who is let in on less is cut short, and takes what others need to come to their ends.
        """
        worst = asked * call.choices
        likely = min(asked, self.lengths.q90(call.model, prompt)) * call.choices if call.stream else worst
        sizes = (worst, None) if whole else (likely, Load(prompt, call.choices))
        price = self.prices.get(call.model)
        want, least = Load(prompt, likely), Load(prompt, sizes[0])
        return await self._ledger.open(call.request_id, tenant.lines, price, want, least, sizes[1])

    def _quote(
        self, call: Call, tenant: Tenant, watch: Watch, grant: Grant, prompt: int, most: int, wanted: int
    ) -> Quote:
        """most: output tokens of each choice that may be had; where the client wants no more, it has its own way."""
        capped = most < wanted
        sizes = self._lease_tokens, self._low_tokens
        throttle = Throttle(tenant.pace, self._clock_ns) if tenant.pace is not None and call.stream else None
        hold = Hold(self._ledger, call.request_id, grant, prompt, *sizes, tenant.turn, throttle)
        decoder, spells_special = self._decoders(call)
        window = partial(self._fleet.window, call.model)
        max_tokens = most if capped else call.max_tokens
        likely = prompt_likely(call, window()), min(most, self.lengths.q90(call.model, prompt))
        terms = Terms(
            self._legs_max, max_tokens, capped, decoder, spells_special, window, self._hedges_max, *likely,
            retry=self._fleet.may_retry, draw=self._draw,
        )  # fmt: skip
        return Quote(hold, terms, watch.over(hold))
