"""A hold settles once, whatever happens in its block."""

import asyncio
from contextlib import nullcontext

import pytest
from structlog.testing import capture_logs

from gateway.books.ledger import hold as hold_module
from gateway.books.ledger import settlement
from gateway.books.ledger.contract import NOTHING
from gateway.books.ledger.hold import Hold
from gateway.books.ledger.memory import MemoryLedger
from guards.budget import Account, Limit, Unit, Verdict
from guards.money import Price
from guards.rate import Rate, Throttle
from guards.refusal import Reason, Refused
from tests.ledgers import settle, take

LIMIT = Limit(1_000)


class SlowLedger(MemoryLedger):
    """Answers when told to; fails as often as told to. A step is taken when its answer is let go."""

    def __init__(self):
        super().__init__(lambda: 0.0)
        self.settlements = []
        self.waiting = []
        self.failures = self.extended = 0
        self.slow = False

    def extend(self, request_id, want, least):
        self.extended += 1
        return self._later(super().extend, request_id, want, least)

    def settle(self, request_id, used, about=NOTHING):
        self.settlements.append((request_id, used.output))
        return self._later(super().settle, request_id, used, about)

    def answer(self):
        """Let all waiting steps be taken and answered."""
        for future, step, arguments in self.waiting:
            answered = step(*arguments)
            if answered.exception():
                future.set_exception(answered.exception())
            else:
                future.set_result(answered.result())
        self.waiting.clear()

    def _later(self, take, *arguments):
        future = asyncio.get_running_loop().create_future()
        if self.failures:
            self.failures -= 1
            future.set_exception(Refused(Reason.BOOKS, "disk full", retry_after_s=1.0))
            return future
        self.waiting.append((future, take, arguments))
        if not self.slow:
            self.answer()
        return future


@pytest.fixture
def ledger():
    return SlowLedger()


async def enter(ledger, want=100, **options):
    return Hold(ledger, "r1", await take(ledger, "r1", "alice", LIMIT, want), 0, **options)


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_leaving_the_block_charges_what_was_metered(ledger):
    """The charge is what the meter counted, the rest is free again."""
    with await enter(ledger) as hold:
        assert (hold.request_id, hold.meter.leased) == ("r1", 100)
        hold.meter.spend(30)

    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=30)


async def test_an_error_in_the_block_passes_and_is_charged(ledger):
    """An exception leaves the block as it is, and what was delivered before it is charged, once."""

    async def request():
        with await enter(ledger) as hold:
            hold.meter.spend(30)
            raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        await request()

    assert ledger.settlements == [("r1", 30)]
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=30)


async def test_a_cancellation_cannot_lose_the_charge(ledger):
    """A request that is cancelled in its block, and again while it settles, is charged once."""
    ledger.slow = True

    async def request():
        with await enter(ledger) as hold:
            hold.meter.spend(30)
            await asyncio.sleep(60)

    task = asyncio.create_task(request())
    await turns()
    task.cancel()
    await turns(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ledger.answer()

    assert ledger.settlements == [("r1", 30)]
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=30)


async def test_the_block_is_left_at_once_with_the_charge_on_its_way(ledger):
    """Nobody waits for the disk: the hold covers what was delivered until the charge does."""
    ledger.slow = True
    hold = await enter(ledger)

    with hold:
        hold.meter.spend(30)
    at_exit = await ledger.balance("alice", LIMIT)
    ledger.answer()

    assert ledger.settlements == [("r1", 30)]
    assert at_exit == Account(1_000, held=100)
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=30)


async def test_an_unavailable_ledger_is_tried_until_it_is_charged(ledger, monkeypatch):
    """A settlement that fails holds nobody up and raises nothing; it is repeated until it is taken."""
    monkeypatch.setattr(settlement, "RETRY_S_FIRST", 0.001)
    with await enter(ledger) as hold:
        hold.meter.spend(30)
        ledger.failures = 3
    await turns()
    at_exit = await ledger.balance("alice", LIMIT)

    with capture_logs() as log:
        await asyncio.sleep(0.5)

    assert [line["event"] for line in log] == ["ledger.settled_late"]  # no line per try
    assert at_exit == Account(1_000, held=100)
    assert ledger.settlements == [("r1", 30)] * 4
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=30)


async def test_retries_are_bounded(ledger, monkeypatch):
    """A ledger that never comes back is given up on after a fixed number of tries."""
    monkeypatch.setattr(settlement, "RETRY_S_FIRST", 0.0)
    monkeypatch.setattr(settlement, "TRIES_MAX", 5)
    ledger.failures = 1_000
    with await enter(ledger):
        pass

    await asyncio.sleep(0.05)

    assert len(ledger.settlements) == 5


@pytest.mark.parametrize("error", [None, KeyError("the block's own")])
async def test_a_bug_in_settling_is_logged_and_takes_nothing_with_it(ledger, error):
    """Charging more than was leased is an error in the log; the block ends as it would, and the hold stays."""
    with capture_logs() as log:
        with nullcontext() if error is None else pytest.raises(KeyError), await enter(ledger) as hold:
            hold.meter.spent = 101
            if error is not None:
                raise error
        await turns()

    assert [line["event"] for line in log if line["log_level"] == "error"] == ["ledger.settlement_failed"]
    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=100)


async def test_a_top_up_feeds_the_meter_then_tells(ledger):
    """The meter knows the new lease when the callback runs, and the callback never runs within the call."""
    told = []
    with await enter(ledger, want=10, lease_tokens=256) as hold:
        assert hold.meter.spend(11) is Verdict.WAIT

        hold.top_up(lambda: told.append(hold.meter.spend(11)))

        assert told == []
        await turns()
        assert told == [Verdict.GO]
        assert hold.meter.leased == 266


async def test_top_ups_are_asked_for_one_at_a_time(ledger):
    """A second top-up while one is in flight asks for nothing; after the answer it does again."""
    ledger.slow = True
    hold = await enter(ledger, want=10)
    told = []

    hold.top_up(lambda: told.append("first"))
    hold.top_up(lambda: told.append("second"))
    ledger.answer()
    await turns()
    hold.top_up(lambda: told.append("third"))
    ledger.answer()
    await turns()

    assert told == ["first", "third"]
    assert hold.meter.leased == 10 + 2 * 256


async def test_a_top_up_outlasts_a_ledger_that_cannot_be_written_for_a_while(ledger, monkeypatch):
    """A failed top-up is asked again; when the ledger is back, the stream has its lease and no failure."""
    monkeypatch.setattr(hold_module, "ASK_AGAIN_S", 0.01)
    with await enter(ledger, want=10, low_tokens=2) as hold:
        assert hold.meter.spend(9) is Verdict.TOP_UP
        ledger.failures = 3
        told = asyncio.Event()

        hold.top_up(told.set)
        await asyncio.wait_for(told.wait(), 2)

        assert (hold.meter.leased, hold.failure, hold.meter.dry) == (266, None, False)


async def test_a_ledger_that_stays_broken_is_not_taken_for_a_spent_budget(ledger, monkeypatch):
    """After a while the hold says that the ledger failed; the meter hears that there is no more."""
    monkeypatch.setattr(hold_module, "ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(hold_module, "BROKEN_S_MAX", 0.03)
    with await enter(ledger, want=10, low_tokens=2) as hold:
        hold.meter.spend(9)
        ledger.failures = 100
        told = asyncio.Event()

        hold.top_up(told.set)
        await asyncio.wait_for(told.wait(), 2)

        assert isinstance(hold.failure, Refused)
        assert hold.failure.reason is Reason.BOOKS
        assert hold.meter.dry
        ledger.failures = 0


async def test_a_top_up_waits_for_what_other_requests_may_give_back(ledger, monkeypatch):
    """A budget that others only hold is not a spent one: the lease comes when they settle."""
    monkeypatch.setattr(hold_module, "ASK_AGAIN_S", 0.01)
    await take(ledger, "other", "alice", LIMIT, 990)
    with await enter(ledger, want=10, low_tokens=2) as hold:
        hold.meter.spend(9)
        told = asyncio.Event()
        hold.top_up(told.set)
        await asyncio.sleep(0.05)
        assert not told.is_set()

        await settle(ledger, "other", 100)
        await asyncio.wait_for(told.wait(), 2)

        assert (hold.meter.leased, hold.meter.dry) == (266, False)


async def test_patience_begins_when_the_stream_has_to_pause(ledger, monkeypatch):
    """While it has something left of its lease it loses nothing by asking on; then it waits, and not for long."""
    monkeypatch.setattr(hold_module, "ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(hold_module, "HELD_S_MAX", 0.05)
    await take(ledger, "other", "alice", LIMIT, 990)
    with await enter(ledger, want=10, low_tokens=2) as hold:
        assert hold.meter.spend(9) is Verdict.TOP_UP
        told = asyncio.Event()
        hold.top_up(told.set)

        await asyncio.sleep(0.2)
        flows = told.is_set()
        assert hold.meter.spend(2) is Verdict.WAIT
        await asyncio.wait_for(told.wait(), 2)

        assert not flows
        assert hold.meter.dry


async def test_a_spent_budget_ends_at_once(ledger):
    """Where nobody else holds anything, a top-up that gets nothing is final, without waiting."""
    with await enter(ledger, want=1_000, low_tokens=2) as hold:
        hold.meter.spend(999)
        told = asyncio.Event()

        hold.top_up(told.set)
        await asyncio.wait_for(told.wait(), 0.2)

        assert hold.meter.dry
        assert hold.failure is None


async def test_no_callback_after_the_end(ledger):
    """A top-up whose answer comes after the block was left tells nobody, and its tokens are given back."""
    ledger.slow = True
    hold = await enter(ledger, want=10)
    told = []
    hold.top_up(lambda: told.append(True))

    with hold:
        pass
    await turns()
    ledger.answer()
    hold.top_up(lambda: told.append(True))
    await turns()

    assert told == []
    assert hold.meter.leased == 10
    assert await ledger.balance("alice", LIMIT) == Account(1_000)


async def test_one_turn_s_limits_bind_beyond_any_top_up(ledger):
    """The key has plenty: this request has no more than a turn may use, and then the ledger is not even asked."""
    turn = [Limit(40), Limit(30, unit=Unit.OUTPUT)]
    grant = await take(ledger, "r1", "alice", LIMIT, 20)
    hold = Hold(ledger, "r1", grant, 0, low_tokens=0, turn=turn)
    meter, told = hold.meter, []

    assert (meter.prompt(15, last=True), meter.leased) == (Verdict.GO, 5)
    hold.top_up(lambda: told.append(meter.leased))
    await turns()
    assert told == [25]
    assert meter.spend(25) is Verdict.TOP_UP
    hold.top_up(lambda: told.append(meter.spend(1)))
    await turns()

    assert (meter.dry, told[-1]) == (True, Verdict.CUT)
    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=40)


async def test_a_hold_that_is_shortened_while_it_runs_ends_at_its_next_top_up(ledger):
    """With what it had leased by then, if that was more."""
    grant = await take(ledger, "r1", "alice", LIMIT, 20)
    hold = Hold(ledger, "r1", grant, 0, lease_tokens=30, low_tokens=0)
    meter, told = hold.meter, []
    hold.longest = 40

    hold.top_up(lambda: told.append(meter.leased))
    await turns()
    assert told == [40]

    hold.longest = 10
    meter.spend(40)
    hold.top_up(lambda: told.append(meter.spend(1)))
    await turns()
    assert (meter.dry, told[-1]) == (True, Verdict.CUT)


async def test_a_prompt_beyond_a_turn_is_cut_though_the_key_could_pay_it(ledger):
    """Before anything of its answer is delivered."""
    grant = await take(ledger, "r1", "alice", LIMIT, 20)
    hold = Hold(ledger, "r1", grant, 0, turn=[Limit(40)])
    told = []

    assert hold.meter.prompt(41, last=True) is Verdict.WAIT
    hold.top_up(lambda: told.append(hold.meter.prompt(41, last=True)))
    assert told == []
    await turns()

    assert told == [Verdict.CUT]
    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=20)


@pytest.mark.parametrize(("price", "counted"), [(None, 0), (Price(1, 2, 1, 2), 0), (Price(1, 2, 1, 3), 30)])
async def test_reasoning_that_nobody_counted_is_the_dearer_kind(ledger, price, counted):
    """Where it is dearer; else it is output like the rest."""
    grant = await take(ledger, "r1", "alice", LIMIT, 100)
    hold = Hold(ledger, "r1", grant._replace(cover=grant.cover._replace(price=price)), 0)
    hold.meter.spend(30)
    hold.reasoning = None

    assert hold.used.reasoning == counted


async def test_a_throttled_hold_gives_no_more_than_has_been_earned(ledger):
    """Forty a second, ten at once: what is leased is not given at once, and the ledger is not asked for it again."""
    now_ns = 0
    told = asyncio.Event()
    with await enter(ledger, throttle=Throttle(Rate(40, 1, 10), lambda: now_ns), low_tokens=2) as hold:
        assert (hold.meter.leased, hold.meter.spend(10)) == (10, Verdict.TOP_UP)
        assert hold.meter.spend(1) is Verdict.WAIT

        hold.top_up(told.set)
        await asyncio.sleep(0.3)
        assert not told.is_set()

        now_ns = 100_000_000
        await asyncio.wait_for(told.wait(), 1)
        assert hold.meter.leased == 14
        assert ledger.extended == 0


async def test_a_throttled_hold_tops_up_when_what_is_leased_is_used(ledger):
    """Beyond the lease, the ledger decides as ever."""
    now_ns = 0
    told = asyncio.Event()
    with await enter(ledger, want=20, throttle=Throttle(Rate(100, 1, 30), lambda: now_ns), lease_tokens=50) as hold:
        assert hold.meter.leased == 20
        hold.meter.spend(20)
        now_ns = 10_000_000
        assert hold.meter.spend(1) is Verdict.WAIT

        hold.top_up(told.set)
        await asyncio.wait_for(told.wait(), 1)

        assert (hold.meter.leased, ledger.extended) == (31, 1)
        assert await ledger.balance("alice", LIMIT) == Account(1_000, held=70)
