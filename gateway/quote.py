"""What a request may cost, and the hold that covers it, before a token is computed.

A hold is smaller than the worst case and topped up as the answer streams. `max_tokens` is fixed at
dispatch and cannot be extended on a running request, so it is what the whole budget could pay.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from gateway.asides import Asides
from gateway.books.keys import Tenant
from gateway.books.ledger.contract import Grant, Ledger
from gateway.books.ledger.hold import Hold
from gateway.fleet.replicas import Fleet
from gateway.stream.call import Call
from gateway.stream.seams import Terms
from gateway.stream.text import Decoder
from guards.estimate import AnswerLengths, prompt_bound
from guards.refusal import Reason, Refused

WINDOW_DEFAULT = 1 << 17  # tokens an answer may take where neither client nor server says


class Quote(NamedTuple):
    """A committed hold, and the terms that go upstream with the request."""

    hold: Hold
    terms: Terms


class Quotes:
    """Makes quotes. lease_tokens, low_tokens: of a top-up; legs_max, hedges_max: servers tried per request."""

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        asides: Asides,
        decoders: Callable[[Call], tuple[Callable[[], Decoder], bool]],
        *,
        lease_tokens: int,
        low_tokens: int,
        legs_max: int,
        hedges_max: int = 8,
    ) -> None:
        self._ledger, self._fleet, self._asides, self._decoders = ledger, fleet, asides, decoders
        self._lease_tokens, self._low_tokens, self._legs_max = lease_tokens, low_tokens, legs_max
        self._hedges_max = hedges_max
        self.lengths = AnswerLengths()

    async def hold(self, call: Call, tenant: Tenant) -> Quote:
        """Hold budget for a request. Raises Refused: BUDGET, HELD, UNBOUNDED, BOOKS, or what /tokenize refuses."""
        window = self._fleet.window(call.model) or WINDOW_DEFAULT
        asked = min(call.max_tokens or window, window)
        if tenant.limit is not None and call.has_media:
            raise Refused(Reason.UNBOUNDED, "Media cannot be counted before it is computed; this key has a budget.")
        prompt = prompt_bound(call.body_bytes, call.messages, len(call.prompts))
        try:
            grant = await self._open(call, tenant, prompt, asked, whole=True)
            return self._quote(call, grant, call.max_tokens, capped=False)
        except Refused as refused:
            if refused.reason not in (Reason.BUDGET, Reason.HELD):
                raise
        return await self._tight(call, tenant, asked)

    async def _tight(self, call: Call, tenant: Tenant, asked: int) -> Quote:
        """Money is tight: the cheap bound may refuse what could be paid, so the prompt is counted exactly."""
        prompt = await self._asides.count(call)
        grant = await self._open(call, tenant, prompt, asked, whole=False)
        # A stream may be topped up to all that the budget could pay; a plain answer is paid for at once.
        room = grant.payable - prompt if call.stream else (grant.leased - prompt) // call.choices
        if room >= asked:
            return self._quote(call, grant, call.max_tokens, capped=False)
        return self._quote(call, grant, room, capped=True)

    async def _open(self, call: Call, tenant: Tenant, prompt: int, asked: int, *, whole: bool) -> Grant:
        """Hold what the request will likely take; `whole`: only if its worst case could be paid too."""
        worst = prompt + asked * call.choices
        likely = min(asked, self.lengths.q90(call.model, prompt)) * call.choices
        want = prompt + likely if call.stream else worst
        least = worst if whole else prompt + call.choices
        return await self._ledger.open(call.request_id, tenant.key_id, tenant.limit, want, least)

    def _quote(self, call: Call, grant: Grant, max_tokens: int | None, *, capped: bool) -> Quote:
        hold = Hold(self._ledger, call.request_id, grant, self._lease_tokens, self._low_tokens)
        decoder, spells_special = self._decoders(call)
        window = partial(self._fleet.window, call.model)
        return Quote(hold, Terms(self._legs_max, max_tokens, capped, decoder, spells_special, window, self._hedges_max))
