"""One contract, every ledger: the same suite over each engine."""

import asyncio
import contextlib
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.books.ledger.contract import Grant
from gateway.books.ledger.memory import MemoryLedger
from gateway.books.ledger.sqlite import SqliteLedger
from guards.budget import UNLIMITED, Account, Limit, Window
from guards.refusal import Reason, Refused

NOON = 1_767_268_800.0  # 2026-01-01T12:00:00Z
LIMIT = Limit(1_000, Window.DAY)
ENGINES = {"memory": lambda data, clock: MemoryLedger(clock), "sqlite": SqliteLedger}


class Clock:
    now_s = NOON

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=ENGINES)
async def ledger(request, tmp_path, clock):
    ledger = ENGINES[request.param](tmp_path, clock)
    yield ledger
    await ledger.close()


async def test_a_grant_is_held_until_it_is_settled_at_what_was_spent(ledger):
    """A hold takes its lease out of what is free; its settlement charges what was spent and frees the rest."""
    grant = await ledger.open("r1", "alice", LIMIT, want=300)
    held = await ledger.balance("alice", LIMIT)

    settled = await ledger.settle("r1", 120)

    assert grant == Grant(leased=300, payable=1_000, window="2026-01-01")
    assert held == Account(1_000, spent=0, held=300)
    assert settled
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=120, held=0)


async def test_payable_is_what_is_left_with_nothing_held(ledger):
    """A grant says what the account could pay at most, whatever others hold."""
    await ledger.open("r1", "alice", LIMIT, want=300)
    await ledger.settle("r1", 300)
    await ledger.open("r2", "alice", LIMIT, want=200)

    grant = await ledger.open("r3", "alice", LIMIT, want=900)

    assert (grant.leased, grant.payable) == (500, 700)


async def test_racing_opens_never_hold_more_than_the_limit(ledger):
    """Of hundreds of requests at once, so many are granted as fit the budget, and no token more."""
    opens = [ledger.open(f"r{i}", "alice", LIMIT, want=30, least=30) for i in range(400)]

    answers = await asyncio.gather(*opens, return_exceptions=True)

    granted = [answer for answer in answers if isinstance(answer, Grant)]
    assert sum(grant.leased for grant in granted) == 990
    assert {answer.reason for answer in answers if isinstance(answer, Refused)} == {Reason.HELD}
    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=990)
    assert await ledger.audit() == []


async def test_a_budget_that_is_held_is_another_refusal_than_one_that_is_spent(ledger):
    """HELD, to be tried again, while others could still give tokens back; BUDGET when nobody could."""
    await ledger.open("r1", "alice", LIMIT, want=1_000)
    with pytest.raises(Refused) as held:
        await ledger.open("r2", "alice", LIMIT, want=10)
    await ledger.settle("r1", 995)
    with pytest.raises(Refused) as spent:
        await ledger.open("r3", "alice", LIMIT, want=10, least=6)

    assert (held.value.reason, held.value.retry_after_s) == (Reason.HELD, 1.0)
    assert (spent.value.reason, spent.value.retry_after_s) == (Reason.BUDGET, None)
    for part in ("5 of 1000 tokens", "day", "2026-01-02T00:00:00Z"):
        assert part in spent.value.detail
    assert (await ledger.open("r4", "alice", LIMIT, want=10, least=5)).leased == 5


async def test_a_request_holds_once(ledger):
    """A second hold under the same request id is a bug, and the first stays as it was."""
    await ledger.open("r1", "alice", LIMIT, want=10)

    with pytest.raises(ValueError, match="r1"):
        await ledger.open("r1", "alice", LIMIT, want=10)

    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=10)


async def test_a_hold_grows_until_nothing_is_free(ledger):
    """A top-up grants what is asked or what is free, then zero; without a hold, zero."""
    await ledger.open("r1", "alice", LIMIT, want=500)

    grants = [await ledger.extend("r1", 300), await ledger.extend("r1", 300), await ledger.extend("r1", 300)]

    assert grants == [300, 200, 0]
    assert await ledger.extend("nobody", 10) == 0
    assert await ledger.settle("r1", 1_000)
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=1_000)


async def test_a_second_settlement_changes_nothing(ledger):
    """A hold is charged once, whoever settles it again, and an unknown one never."""
    await ledger.open("r1", "alice", LIMIT, want=100)

    answers = [await ledger.settle("r1", 60), await ledger.settle("r1", 90), await ledger.settle("nobody", 1)]

    assert answers == [True, False, False]
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=60)


@pytest.mark.parametrize("spent", [101, -1])
async def test_a_charge_outside_the_lease_is_a_bug_and_changes_nothing(ledger, spent):
    """More than was leased, or less than nothing, is not charged; the hold can still be settled."""
    await ledger.open("r1", "alice", LIMIT, want=100)

    with pytest.raises(AssertionError):
        await ledger.settle("r1", spent)

    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=100)
    assert await ledger.settle("r1", 100)


async def test_a_new_window_starts_afresh_and_old_holds_settle_where_they_were_opened(ledger, clock):
    """Budgets roll over by their window's name; a hold is charged to the window it was granted in."""
    await ledger.open("r1", "alice", LIMIT, want=1_000)
    clock.now_s += 86_400

    grant = await ledger.open("r2", "alice", LIMIT, want=1_000)
    topped_up = await ledger.extend("r1", 10)
    await ledger.settle("r1", 1_000)

    assert grant == Grant(1_000, 1_000, "2026-01-02")
    assert topped_up == 0
    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=1_000)
    clock.now_s -= 86_400
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=1_000)


async def test_a_key_without_a_budget_is_accounted_for(ledger):
    """No limit means never refused, and its spending is recorded all the same."""
    grant = await ledger.open("r1", "root", None, want=5_000_000)

    await ledger.settle("r1", 4_000_000)

    assert (grant.leased, grant.window) == (5_000_000, "total")
    assert await ledger.balance("root", None) == Account(UNLIMITED, spent=4_000_000)


async def test_the_limit_passed_in_wins_over_the_stored_one(ledger):
    """A limit that was lowered refuses the next request and the next top-up; a raised one grants again."""
    await ledger.open("r1", "alice", LIMIT, want=400)

    with pytest.raises(Refused) as refused:
        await ledger.open("r2", "alice", Limit(400, Window.DAY), want=1)
    topped_up = await ledger.extend("r1", 10)
    raised = await ledger.open("r3", "alice", Limit(2_000, Window.DAY), want=5_000)

    assert refused.value.reason is Reason.HELD
    assert topped_up == 0
    assert raised == Grant(1_600, 2_000, "2026-01-01")


async def test_accounts_do_not_share(ledger):
    """One key's holds leave another key's budget alone."""
    await ledger.open("r1", "alice", LIMIT, want=1_000)

    assert (await ledger.open("r2", "bob", LIMIT, want=1_000)).leased == 1_000


async def test_a_cancelled_caller_leaves_no_hold(ledger):
    """Whenever its caller is cancelled, a grant either arrived or went back."""
    arrived = []

    async def ask(request_id):
        arrived.append((request_id, await ledger.open(request_id, "alice", LIMIT, want=1)))

    for i in range(60):
        task = asyncio.create_task(ask(f"r{i}"))
        for _ in range(i % 6):
            await asyncio.sleep(0)
        await asyncio.sleep(0.001 * (i % 4))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    for request_id, _ in arrived:
        await ledger.settle(request_id, 1)
    await ledger.audit()  # answered after all openings, whose grants are on their way back then

    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=len(arrived))
    assert await ledger.audit() == []


async def test_a_settlement_is_heard_although_its_caller_is_gone(ledger):
    """A step is on its way when the call returns, also when nobody awaits the answer."""
    await ledger.open("r1", "alice", LIMIT, want=100)

    ledger.settle("r1", 7).cancel()

    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=7)


async def test_a_closed_ledger_refuses(ledger):
    """After the end, callers are told that the books are unavailable; nobody hangs. Closing twice is no error."""
    await ledger.close()
    await ledger.close()

    with pytest.raises(Refused) as refused:
        await asyncio.wait_for(ledger.open("r1", "alice", LIMIT, want=1), 1)

    assert refused.value.reason is Reason.BOOKS


REQUESTS = st.sampled_from(["r0", "r1", "r2", "r3"])
STEPS = st.one_of(
    st.tuples(st.just("open"), REQUESTS, st.integers(1, 80), st.integers(1, 80)),
    st.tuples(st.just("extend"), REQUESTS, st.integers(1, 80), st.just(0)),
    st.tuples(st.just("settle"), REQUESTS, st.integers(0, 60), st.just(0)),
)


async def replay(ledger, steps):
    """Send all steps without waiting; return the answers, errors as values."""
    limit = Limit(100)
    sent = []
    for name, request_id, tokens, least in steps:
        arguments = {"open": ("alice", limit, tokens, least)}.get(name, (tokens,))
        sent.append(getattr(ledger, name)(request_id, *arguments))
    answers = await asyncio.gather(*sent, return_exceptions=True)
    return answers, await ledger.balance("alice", limit), await ledger.audit()


def expected(steps):
    """The same steps on plain numbers, written independently of the ledger."""
    leases, spent, answers = Counter(), 0, []
    for name, request_id, tokens, least in steps:
        free = 100 - spent - leases.total()
        if name == "open" and request_id in leases:
            answers.append(ValueError)
        elif name == "open" and free < least:
            answers.append(Reason.BUDGET if 100 - spent < least else Reason.HELD)
        elif name == "open":
            leases[request_id] = min(tokens, free)
            answers.append(Grant(min(tokens, free), 100 - spent, "total"))
        elif request_id not in leases:
            answers.append(0 if name == "extend" else False)
        elif name == "extend":
            leases[request_id] += min(tokens, free)
            answers.append(min(tokens, free))
        elif tokens > leases[request_id]:
            answers.append(AssertionError)
        else:
            spent += tokens
            del leases[request_id]
            answers.append(True)
    return answers, Account(100, spent, leases.total())


def plain(answer):
    return answer.reason if isinstance(answer, Refused) else type(answer) if isinstance(answer, Exception) else answer


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, max_size=40))
def test_any_sequence_of_steps_keeps_the_books(engine, steps):
    """Whatever is opened, extended and settled in whatever order, every answer and the balance are exact."""

    async def world(data):
        ledger = ENGINES[engine](Path(data), Clock())
        try:
            return await replay(ledger, steps)
        finally:
            await ledger.close()

    with tempfile.TemporaryDirectory() as data:
        answers, account, violations = asyncio.run(world(data))

    assert ([plain(answer) for answer in answers], account) == expected(steps)
    assert violations == []
    assert account.held + account.spent + account.free == 100
