"""When running requests must end: in time, when a key is revoked, a breaker opens, rights to spend lapse, or now."""

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set
from math import inf
from types import TracebackType
from typing import Self

from gateway.books.tenants import Tenant
from gateway.sessions import Sessions
from gateway.stream.call import Call
from gateway.stream.refusals import given_up
from guards.budget import Line
from guards.refusal import Ending
from guards.timeouts import UNSAID, Due, Times, first_due, tightest

Verdict = tuple[Ending, str]
STOPPED: Verdict = (Ending.STOPPED, "The gateway is stopping, and this request took longer than it may wait.")
REVOKED: Verdict = (Ending.REVOKED, "The API key of this request was revoked.")
LAPSED: Verdict = (Ending.BOOKS, "The budget of this request cannot be asked for any more right now.")
LATE = {
    Ending.TIMEOUT: "This request took longer than {:g} s, the limit for one (total_s).",
    Ending.SESSION: "This session is older than {:g} s, the limit for one (session_s).",
}
LOOK_EVERY_S = 0.02  # at the soonest, whatever ends when
NO_TIMES: Mapping[str, Times] = {}
NOTHING_SAID = (UNSAID, UNSAID, UNSAID)


class Expired(Exception):
    """A request's time is over. verdict: how it ended, and what its client is told."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(*verdict)
        self.verdict = verdict


class Deadlines:
    """The deadlines of all running requests. One timer serves all: it looks when the first of them may be due.

    total_s: what one request may take, all its legs together; session_s: all of a session's. Both where neither its
        key nor its model says otherwise.
    models, tiers: what models say, and the tiers of keys; tier: of those for which none is said.
    """

    def __init__(
        self,
        total_s: float,
        session_s: float | None = None,
        models: Mapping[str, Times] = NO_TIMES,
        tiers: Mapping[str, Times] = NO_TIMES,
        tier: Times = UNSAID,
    ) -> None:
        self._usual, self._models, self._tiers, self._tier = Times(total_s, session_s), models, tiers, tier
        self._sessions = Sessions()
        self._running: dict[Deadline, None] = {}  # in the order of their beginning
        self._timer: asyncio.TimerHandle | None = None
        self._look_at_s = inf
        self._stopped = False
        self._revoked: set[str] = set()  # since the start: one may have been let in a moment before, and begin after

    def of(self, call: Call, tenant: Tenant) -> "Deadline":
        """As `one`, by what its key, tier, model and session say. Raises Refused (SESSION) where that is over."""
        now_s = asyncio.get_running_loop().time()
        tier = self._tier if tenant.tier is None else self._tiers.get(tenant.tier, self._tier)
        said = tenant.times, tier, self._models.get(call.model, UNSAID)
        times = self._usual if said == NOTHING_SAID else tightest(said).over(self._usual)
        since_s = None
        if times.session_s is not None and call.session is not None:
            since_s = self._sessions.since(tenant.key_id, call.session, now_s)
        due = first_due(times, now_s, since_s)
        if due is not None and due.at_s <= now_s:
            raise given_up(*_late(due))
        return self.one(tenant.key_id, tenant.lines, due=due)

    def one(
        self, key_id: str, lines: Sequence[Line] = (), whose: object = None, due: Due | None = None
    ) -> "Deadline":
        """A block that ends in time. Raises Expired when it did not by itself.

        lines: the limits it is under, for `lapse`; whose: for `end`; due: when it must end; as usual if unsaid.
        """
        if due is None:
            due = first_due(self._usual, asyncio.get_running_loop().time(), None)
        return Deadline(key_id, lines, whose, due, self._began, self._running.pop)

    def end(self, whose: Set[object], verdict: Verdict) -> int:
        """End those requests that run now which are of these; return how many."""
        ended = [one for one in self._running if one.whose in whose and one.verdict is None]
        for one in ended:
            one.expire(verdict)
        return len(ended)

    def stop(self) -> None:
        """End every request, those that run and those to come: the gateway stops."""
        self._stopped = True
        for one in self._running:
            one.expire(STOPPED)

    def revoke(self, key_ids: Set[str]) -> int:
        """End the requests of keys that are no longer good, also those to come; return how many ran."""
        self._revoked |= key_ids
        ended = [one for one in self._running if one.key_id in key_ids and one.verdict is None]
        for one in ended:
            one.expire(REVOKED)
        return len(ended)

    def lapse(self, over: Callable[[Sequence[Line]], bool]) -> int:
        """End the running requests of whose limits nothing more may be spent; return how many those were."""
        ended = [one for one in self._running if one.verdict is None and over(one.lines)]
        for one in ended:
            one.expire(LAPSED)
        return len(ended)

    def _began(self, one: "Deadline") -> None:
        self._running[one] = None
        if self._stopped:
            one.expire(STOPPED)
        elif one.key_id in self._revoked:
            one.expire(REVOKED)
        elif one.due is not None:
            self._expect(one.due.at_s)

    def _expect(self, at_s: float) -> None:
        """Look then, if nobody does sooner."""
        if at_s < self._look_at_s:
            if self._timer is not None:
                self._timer.cancel()
            self._look_at_s = at_s
            self._timer = asyncio.get_running_loop().call_at(at_s, self._look)

    def _look(self) -> None:
        """End those whose time is over, and look again when the next one's is."""
        now_s = asyncio.get_running_loop().time()
        self._timer, self._look_at_s, next_s = None, inf, inf
        for one in self._running:
            if one.due is None:
                continue
            if one.due.at_s <= now_s:
                one.expire(_late(one.due))
            else:
                next_s = min(next_s, one.due.at_s)
        if next_s < inf:
            self._expect(max(next_s, now_s + LOOK_EVERY_S))


def _late(due: Due) -> Verdict:
    return due.ending, LATE[due.ending].format(due.limit_s)


class Deadline:
    """A block, as of `asyncio.timeout`, whose time somebody else keeps.

    verdict: how the request in it ended, and what its client is told; None while it may go on.
    """

    __slots__ = ("_began", "_cancelling", "_left", "_task", "due", "key_id", "lines", "verdict", "whose")

    def __init__(
        self,
        key_id: str,
        lines: Sequence[Line],
        whose: object,
        due: Due | None,
        began: Callable[["Deadline"], None],
        left: Callable[["Deadline"], None],
    ) -> None:
        self.key_id, self.lines, self.whose, self.due = key_id, lines, whose, due
        self._began, self._left = began, left
        self.verdict: Verdict | None = None

    def over(self, whose: object, due: Due | None = None) -> Self:
        """The same, once it is known whose it is, and when it must end by what it asks for."""
        self.whose = whose
        if due is not None and (self.due is None or due < self.due):
            self.due = due
        return self

    def expire(self, verdict: Verdict) -> None:
        """Its time is over: whatever is awaited in it is cancelled. The first verdict stands."""
        if self.verdict is None:
            self.verdict = verdict
            self._task.cancel()

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        if self.due is not None and self.due.at_s <= asyncio.get_running_loop().time():
            raise Expired(_late(self.due))  # nothing is begun that would be ended at once
        self._task, self._cancelling = task, task.cancelling()
        self._began(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left(self)
        # Where somebody else has cancelled the task as well, that goes on.
        if self.verdict is not None and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise Expired(self.verdict) from error
