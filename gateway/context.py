"""Whether a request's prompt fits its model, found out before any server computes it.

A cheap bound says of most prompts that they do. Of others a server is asked to count, and what cannot be counted is
left to the server that gets it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.asides import Asides
from gateway.books.tenants import Tenant
from gateway.fleet.replicas import Fleet
from gateway.stream.call import Call, Endpoint
from gateway.stream.wire import encode
from guards import context
from guards.refusal import Reason, Refused

Headers = tuple[tuple[str, str], ...]
NO_LIMITS: Mapping[str, int] = {}
USED, DROPPED = "x-holdfast-context-used", "x-holdfast-context-dropped"
COUNTS_MAX = 4  # of one prompt, while its oldest turns are dropped: what goes is only guessed


class Context(NamedTuple):
    """How near a prompt is to its limit. dropped: messages that were left out.

    tokens: of the longest prompt; 0 where nobody had to count.
    """

    tokens: int = 0
    limit: int = 0
    dropped: int = 0

    @property
    def headers(self) -> Headers:
        """What the client is told."""
        told: Headers = ((USED, f"{self.tokens}/{self.limit}"),) if self._near else ()
        return (*told, (DROPPED, str(self.dropped))) if self.dropped else told

    @property
    def about(self) -> dict[str, Any]:
        """The same for the journal."""
        told = {"context_tokens": self.tokens, "context_limit": self.limit} if self._near else {}
        return told | ({"context_dropped": self.dropped} if self.dropped else {})

    @property
    def _near(self) -> bool:
        return self.tokens > 0 and context.near(self.tokens, self.limit)


FITS = Context()


class Contexts:
    """Looks at prompts. limits: of models that answer well only below their window, in tokens."""

    def __init__(self, fleet: Fleet, asides: Asides, limits: Mapping[str, int] = NO_LIMITS) -> None:
        self._fleet, self._asides, self._limits = fleet, asides, limits

    async def fit(self, call: Call, tenant: Tenant) -> Context:
        """See that a prompt fits; where its key wants that, its oldest turns are dropped until it does.

        What was counted is the call's bound from then on. Raises Refused (CONTEXT).
        """
        limit = self.limit(call, tenant)
        if limit is None:
            return FITS
        tokens = await self._count(call)
        if tokens is None:
            return FITS
        dropped = 0
        if tenant.truncates and call.endpoint is Endpoint.CHAT:
            tokens, dropped = await self._truncated(call, tokens, limit)
        if tokens is None:  # what is left may fit: its server will say
            return Context(dropped=dropped)
        if tokens >= limit:
            raise _too_long(call, tokens, limit)
        return Context(tokens, limit, dropped)

    def limit(self, call: Call, tenant: Tenant) -> int | None:
        """How long its prompt may be, where it may be about as long; None where it surely fits, or nobody knows."""
        limit = self.longest(call.model)
        if limit is None or call.has_media or not self._doubtful(call, tenant, limit):
            return None
        return limit

    def longest(self, model: str) -> int | None:
        """How long a prompt of a model may be, in tokens; None where nobody knows."""
        limit = self._fleet.window(model)
        if model in self._limits:
            said = self._limits[model]
            limit = said if limit is None else min(said, limit)
        return limit

    @staticmethod
    def _doubtful(call: Call, tenant: Tenant, limit: int) -> bool:
        bound = call.prompt_bound
        return context.near(bound, limit) or (tenant.truncates and context.excess(bound, call.max_tokens, limit) > 0)

    async def _count(self, call: Call) -> int | None:
        """Count the longest prompt; None where nobody can."""
        try:
            counts = await self._asides.counts(call)
        except Refused:
            return None
        call.prompt_bound = sum(counts)
        return max(counts)

    async def _truncated(self, call: Call, tokens: int, limit: int) -> tuple[int | None, int]:
        """Drop the oldest turns while the prompt is too long, never the last; tokens that stay, messages that went.

        None for tokens that nobody could count any more.
        """
        dropped = 0
        for _ in range(COUNTS_MAX):
            messages = call.body["messages"]
            turns = context.turns([message.get("role") for message in messages])[:-1]
            too_many = context.excess(tokens, call.max_tokens, limit)
            if not too_many or not turns:
                break
            number = context.to_drop(turns, [len(encode(message)) for message in messages], tokens, too_many)
            gone = {place for turn in turns[:number] for place in turn}
            call.body["messages"] = [one for place, one in enumerate(messages) if place not in gone]
            call.messages -= len(gone)
            dropped += len(gone)
            counted = await self._count(call)
            if counted is None:
                return None, dropped
            tokens = counted
        return tokens, dropped


def _too_long(call: Call, tokens: int, limit: int) -> Refused:
    """As OpenAI words it."""
    param = "messages" if call.endpoint is Endpoint.CHAT else "prompt"
    detail = (
        f"This model's maximum context length is {limit} tokens. However, you requested at least {tokens + 1} tokens "
        f"({tokens} in the {param}, 1 in the completion). Please reduce the length of the {param}."
    )
    return Refused(Reason.CONTEXT, detail, param=param)
