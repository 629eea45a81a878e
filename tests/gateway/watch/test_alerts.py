"""Each share of each budget is told once, and each turn of a breaker."""

import asyncio
import json

import pytest

from gateway.books.alert_book import AlertBook
from gateway.watch.alerts import LOOKS_MAX, TOUCHED_MAX, Alerts
from gateway.watch.metrics import Metrics
from guards.budget import UNLIMITED, Account, Limit, Line, Unit, Window
from guards.burn import State, Turn
from guards.refusal import Reason, Refused

NOON_S = 1_795_262_400.0
BUDGET = Line("org:acme", Limit(1_000, Window.DAY))


class Desk:
    """Alerts over a real book, and all that was told; `spent` of each scope is a test's."""

    def __init__(self, tmp_path, shares=(0.8, 0.5, 1.0)):
        self.now_s, self.spent, self.facts, self.sent, self.asked = NOON_S, {}, [], [], 0
        self.broken = None
        self.metrics, self.path, self.shares = Metrics(), tmp_path / "alerts.sqlite3", shares
        self.start()

    def start(self):
        self.book = AlertBook(self.path, lambda: self.now_s, heard=True)
        self.alerts = Alerts(
            lambda kind, about, fields: self.facts.append((kind, fields)),
            self.metrics,
            lambda: self.now_s,
            shares=self.shares,
            balance=self.balance,
            book=self.book,
        )
        self.alerts.send = self.sent.append

    async def balance(self, scope, limit):
        self.asked += 1
        if self.broken is not None:
            raise self.broken
        return Account(limit.amount, self.spent.get(scope, 0))

    async def charge(self, spent, *lines):
        """Have something spent under limits, and look."""
        lines = lines or (BUDGET,)
        for line in lines:
            self.spent[line.scope] = spent
        self.alerts.charged(lines)
        await self.alerts.look()
        return [fields["share"] for kind, fields in self.facts if kind == "budget.reached"]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


async def test_each_share_is_told_once_when_it_is_reached(desk):
    """Several at once, one by one, the smallest first."""
    assert await desk.charge(499) == []
    assert await desk.charge(500) == [0.5]
    assert await desk.charge(799) == [0.5]
    assert await desk.charge(1_000) == [0.5, 0.8, 1.0]
    assert await desk.charge(1_000) == [0.5, 0.8, 1.0]

    (_, fields) = desk.facts[0]
    day = {"scope": "org:acme", "unit": "tokens", "window": "2026-11-21"}
    assert fields == day | {"share": 0.5, "used": 500, "of": 1_000}
    said = json.loads(desk.sent[0].body)
    assert (said["type"], said["data"]) == ("budget.reached", fields)
    assert b'holdfast_alerts_total{kind="budget.reached"} 3.0' in desk.metrics.exposition()


async def test_a_new_window_is_told_of_anew_and_a_restart_is_not(desk):
    """The book remembers. A thing has the same id whoever tells it, so that receivers know."""
    await desk.charge(600)
    desk.book.close()
    desk.start()
    assert await desk.charge(900) == [0.5, 0.8]

    desk.now_s += 86_400
    assert await desk.charge(600) == [0.5, 0.8, 0.5]
    ids = [alert.alert_id for alert in desk.sent]
    assert len(set(ids)) == 3

    desk.book.close()
    desk.path.unlink()
    desk.start()
    await desk.charge(600)
    assert desk.sent[-1].alert_id == ids[-1]


async def test_the_last_micro_dollars_of_a_budget_count_as_spent(desk):
    """They seldom pay for a token."""
    assert await desk.charge(999_000, Line("key:a", Limit(1_000_000, Window.MONTH, Unit.MONEY))) == [0.5, 0.8, 1.0]


async def test_what_nobody_must_hear_of_is_not_looked_at(desk):
    """Limits that only record, windows that are over soon, and names that clients make up."""
    quiet = [
        Line("key:a", Limit(UNLIMITED)),
        Line("key:a", Limit(10, Window.HOUR)),
        Line("key:a", Limit(10, Window.MINUTE)),
        Line("session:a/s", Limit(10, Window.DAY)),
        Line("agent:a/s", Limit(10)),
    ]

    assert await desk.charge(10, *quiet) == []
    assert desk.asked == 0


async def test_a_ledger_that_cannot_be_asked_is_asked_again(desk):
    """And a bug is no endless loop."""
    desk.broken = Refused(Reason.BOOKS, "broken")
    assert await desk.charge(500) == []
    desk.broken = None
    await desk.alerts.look()
    assert await desk.charge(500) == [0.5]

    desk.broken, asked = ValueError("a bug"), desk.asked
    await desk.charge(900)
    desk.broken = None
    await desk.alerts.look()
    assert desk.asked == asked + 1


async def test_looks_are_bounded(desk):
    """So many accounts at a time; the others have their turn. Limits that come beyond all bounds wait for a charge."""
    lines = [Line(f"key:{number}", Limit(10)) for number in range(LOOKS_MAX + 5)]
    await desk.charge(0, *lines)
    assert desk.asked == LOOKS_MAX
    await desk.alerts.look()
    assert desk.asked == LOOKS_MAX + 5

    kept = [(Line("key:x", Limit(10)),) for _ in range(TOUCHED_MAX + 1)]
    for one in kept:
        desk.alerts.charged(one)
    assert len(desk.alerts._touched) == TOUCHED_MAX


async def test_a_breaker_that_turns_is_told_each_time(desk):
    """With its scope, its model, and why."""
    turn = Turn("key:a", BUDGET, "big", State.CLOSED, State.OPEN, "it burns", 7)
    desk.alerts.turned(turn)
    desk.alerts.turned(turn)

    assert desk.facts == 2 * [
        (
            "breaker.turned",
            {
                "scope": "key:a", "model": "big", "budget": "tokens per day of org:acme", "before": "closed",
                "state": "open", "why": "it burns", "requests_ended": 7,
            },
        )
    ]  # fmt: skip
    assert len({alert.alert_id for alert in desk.sent}) == 2
    assert b'holdfast_breaker_turns_total{level="key",state="open"} 2.0' in desk.metrics.exposition()


async def test_a_fault_is_not_the_end_of_all_alerts(desk, monkeypatch):
    """It is logged, and the next look is taken."""
    monkeypatch.setattr("gateway.watch.alerts.LOOK_S", 0.001)
    looks = asyncio.Queue()

    async def look():
        looks.put_nowait("looked")
        raise ValueError("a bug")

    monkeypatch.setattr(desk.alerts, "look", look)
    task = asyncio.create_task(desk.alerts.run())
    async with asyncio.timeout(2):
        for _ in range(3):
            await looks.get()
    task.cancel()
