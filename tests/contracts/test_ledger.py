"""One contract, every ledger: the same suite over each engine."""

import asyncio
import contextlib
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.books.ledger.contract import Charged, Correction, Grant, More, Place
from gateway.books.ledger.leased import LeasedLedger
from gateway.books.ledger.memory import MemoryLedger
from gateway.books.ledger.orders import OtherOrder
from gateway.books.ledger.register import Register
from gateway.books.ledger.sqlite import SqliteLedger
from gateway.books.vault.memory import MemoryVault
from guards.budget import UNLIMITED, Account, Limit, Line, Unit, Window
from guards.claim import Load
from guards.money import DOLLAR, Price, Tokens
from guards.refusal import Reason, Refused
from tests.ledgers import extend, settle, take, tokens

NOON = 1_767_268_800.0  # 2026-01-01T12:00:00Z
LIMIT = Limit(1_000, Window.DAY)
PLACE = Place("alice", "tokens", "2026-01-01")
PRICE = Price(2 * DOLLAR, 6 * DOLLAR, DOLLAR, 6 * DOLLAR)  # micro-dollars a token: 2 of input, 1 cached, 6 of output


def leased(data, clock):
    """The ledger of one gateway that has a vault for itself."""
    return LeasedLedger(SqliteLedger(data, clock), Register(data), MemoryVault(clock), clock=clock, wall=clock)


ENGINES = {"memory": lambda data, clock: MemoryLedger(clock), "sqlite": SqliteLedger, "leased": leased}


async def opened(engine, data, clock):
    """One of them, ready for use."""
    ledger = ENGINES[engine](data, clock)
    if isinstance(ledger, LeasedLedger):
        await ledger.vault.begin()
    return ledger


class Clock:
    now_s = NOON

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=ENGINES)
async def ledger(request, tmp_path, clock):
    ledger = await opened(request.param, tmp_path, clock)
    yield ledger
    await ledger.close()


# ---------------------------------------------------------------- one limit


async def test_a_grant_is_held_until_it_is_settled_at_what_was_spent(ledger):
    """A hold takes its lease out of what is free; its settlement charges what was spent and frees the rest."""
    grant = await take(ledger, "r1", "alice", LIMIT, want=300)
    held = await ledger.balance("alice", LIMIT)

    settled = await settle(ledger, "r1", 120)

    assert grant.places == (Place("alice", "tokens", "2026-01-01"),)
    assert (grant.cover, grant.leased, grant.payable) == (tokens(300), 300, 1_000)
    assert held == Account(1_000, spent=0, held=300)
    assert settled
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=120, held=0)


async def test_payable_is_what_is_left_with_nothing_held(ledger):
    """A grant says what the account could pay at most, whatever others hold."""
    await take(ledger, "r1", "alice", LIMIT, want=300)
    await settle(ledger, "r1", 300)
    await take(ledger, "r2", "alice", LIMIT, want=200)

    grant = await take(ledger, "r3", "alice", LIMIT, want=900)

    assert (grant.leased, grant.payable) == (500, 700)


async def test_racing_opens_never_hold_more_than_the_limit(ledger):
    """Of hundreds of requests at once, so many are granted as fit the budget, and no token more."""
    opens = [take(ledger, f"r{i}", "alice", LIMIT, want=30, least=30) for i in range(400)]

    answers = await asyncio.gather(*opens, return_exceptions=True)

    granted = [answer for answer in answers if isinstance(answer, Grant)]
    assert sum(grant.leased for grant in granted) == 990
    assert {answer.reason for answer in answers if isinstance(answer, Refused)} == {Reason.HELD}
    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=990)
    assert await ledger.audit() == []


async def test_a_budget_that_is_held_is_another_refusal_than_one_that_is_spent(ledger):
    """HELD, to be tried again, while others could still give tokens back; BUDGET when nobody could."""
    await take(ledger, "r1", "user:alice", LIMIT, want=1_000)
    with pytest.raises(Refused) as held:
        await take(ledger, "r2", "user:alice", LIMIT, want=10)
    await settle(ledger, "r1", 995)
    with pytest.raises(Refused) as spent:
        await take(ledger, "r3", "user:alice", LIMIT, want=10, least=6)

    assert (held.value.reason, held.value.retry_after_s) == (Reason.HELD, 1.0)
    assert (spent.value.reason, spent.value.retry_after_s) == (Reason.BUDGET, None)
    for part in ("5 tokens of 1000 tokens", "user:alice", "day", "2026-01-02T00:00:00Z", "needs 6 tokens"):
        assert part in spent.value.detail
    assert (await take(ledger, "r4", "user:alice", LIMIT, want=10, least=5)).leased == 5


async def test_a_request_holds_once(ledger):
    """A second hold under the same request id is a bug, and the first stays as it was."""
    await take(ledger, "r1", "alice", LIMIT, want=10)

    with pytest.raises(ValueError, match="r1"):
        await take(ledger, "r1", "alice", LIMIT, want=10)

    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=10)


async def test_a_hold_grows_until_nothing_is_free(ledger):
    """A top-up grants what is asked or what is free, then nothing; without a hold, nothing."""
    await take(ledger, "r1", "alice", LIMIT, want=500)

    answers = [await extend(ledger, "r1", total, least) for total, least in ((800, 501), (1_100, 801), (1_300, 1_001))]

    assert answers == [More(tokens(800)), More(tokens(1_000)), More(None)]
    assert await extend(ledger, "nobody", 10, 1) == More(None)
    assert await settle(ledger, "r1", 1_000)
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=1_000)


async def test_a_refused_top_up_tells_what_others_may_give_back(ledger):
    """And changes nothing."""
    await take(ledger, "r1", "alice", LIMIT, want=300)
    await take(ledger, "r2", "alice", LIMIT, want=700)

    assert await extend(ledger, "r1", 400, 301) == More(None, of_others=700)
    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=1_000)


async def test_a_second_settlement_changes_nothing(ledger):
    """A hold is charged once, whoever settles it again, and an unknown one never."""
    await take(ledger, "r1", "alice", LIMIT, want=100)

    answers = [await settle(ledger, "r1", 60), await settle(ledger, "r1", 90), await settle(ledger, "nobody", 1)]

    assert [answer and answer.used for answer in answers] == [Tokens(output=60), None, None]
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=60)


@pytest.mark.parametrize("spent", [101, -1])
async def test_a_charge_outside_the_lease_is_a_bug_and_changes_nothing(ledger, spent):
    """More than was leased, or less than nothing, is not charged; the hold can still be settled."""
    await take(ledger, "r1", "alice", LIMIT, want=100)

    with pytest.raises(AssertionError):
        await settle(ledger, "r1", spent)

    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=100)
    assert await settle(ledger, "r1", 100)


async def test_a_new_window_starts_afresh_and_old_holds_settle_where_they_were_opened(ledger, clock):
    """Budgets roll over by their window's name; a hold is charged to the window it was granted in."""
    await take(ledger, "r1", "alice", LIMIT, want=1_000)
    clock.now_s += 86_400

    grant = await take(ledger, "r2", "alice", LIMIT, want=1_000)
    topped_up = await extend(ledger, "r1", 1_010, 1_001)
    await settle(ledger, "r1", 1_000)

    assert (grant.leased, grant.places[0].window) == (1_000, "2026-01-02")
    assert topped_up == More(None)
    assert await ledger.balance("alice", LIMIT) == Account(1_000, held=1_000)
    clock.now_s -= 86_400
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=1_000)


async def test_a_limit_that_only_records_is_accounted_for(ledger):
    """It never refuses, and what is spent is known all the same."""
    record = Limit(UNLIMITED)
    grant = await take(ledger, "r1", "root", record, want=5_000_000)

    await settle(ledger, "r1", 4_000_000)

    assert (grant.leased, grant.places[0].window) == (5_000_000, "total")
    assert await ledger.balance("root", record) == Account(UNLIMITED, spent=4_000_000)


async def test_the_limit_passed_in_wins_over_the_stored_one(ledger):
    """A limit that was lowered refuses the next request and the next top-up; a raised one grants again."""
    await take(ledger, "r1", "alice", LIMIT, want=400)

    with pytest.raises(Refused) as refused:
        await take(ledger, "r2", "alice", Limit(400, Window.DAY), want=1)
    topped_up = await extend(ledger, "r1", 410, 401)
    raised = await take(ledger, "r3", "alice", Limit(2_000, Window.DAY), want=5_000)

    assert refused.value.reason is Reason.HELD
    assert topped_up == More(None)
    assert (raised.leased, raised.payable) == (1_600, 2_000)


async def test_a_changed_limit_holds_for_running_requests(ledger, clock):
    """Lowered or raised, from the next top-up on; in windows that were never used there is nothing to change."""
    await take(ledger, "r1", "alice", LIMIT, want=400)

    lowered = await ledger.relimit(Line("alice", Limit(450, Window.DAY)))
    answers = [await extend(ledger, "r1", 500, 401), await extend(ledger, "r1", 500, 451)]
    raised = await ledger.relimit(Line("alice", Limit(UNLIMITED, Window.DAY)))

    assert (lowered, raised, await ledger.relimit(Line("alice", Limit(5)))) == (True, True, False)
    assert answers == [More(tokens(450)), More(None)]
    assert await extend(ledger, "r1", 9_000, 451) == More(tokens(9_000))
    assert await ledger.balance("alice", Limit(5)) == Account(5)


async def test_a_top_up_is_a_limit_that_is_more_in_one_window(ledger, clock):
    """Running requests have it too; the next window has none of it."""
    more = Limit(1_000, Window.DAY, extra=(("2026-01-01", 500),))
    await take(ledger, "r1", "alice", LIMIT, want=1_000)

    assert await ledger.relimit(Line("alice", more))
    assert await extend(ledger, "r1", 2_000, 1_001) == More(tokens(1_500))
    with pytest.raises(Refused, match="of 1500 tokens"):
        await take(ledger, "r2", "alice", more, want=1)
    clock.now_s += 86_400
    assert (await take(ledger, "r3", "alice", more, want=2_000)).payable == 1_000


async def test_a_correction_is_made_once_and_leaves_holds_as_they_are(ledger):
    """All that is spent is given back, or so much charged; a name that is known changes nothing, said by whomever."""
    await take(ledger, "r1", "alice", LIMIT, want=300)
    await settle(ledger, "r1", 300)
    await take(ledger, "r2", "alice", LIMIT, want=50)

    first = await ledger.correct("x", [Correction([(PLACE, None)], {"why": "reset"})])
    again = await ledger.correct("x", [Correction([(PLACE, None)], {"why": "reset", "by": "bob"})])
    more = await ledger.correct("y", [Correction([(PLACE, 7), (PLACE._replace(scope="nobody"), 7)]), Correction([])])

    assert [(one.request_id, one.charges, one.about) for one in first] == [
        ("correction-x/0", [(PLACE, -300)], {"why": "reset"})
    ]
    assert again is None
    assert [one.charges for one in more] == [[(PLACE, 7)], []]
    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=7, held=50)
    assert await settle(ledger, "r2", 50)
    assert await ledger.audit() == []


@pytest.mark.parametrize(
    "other",
    [
        [Correction([(PLACE, 7)], {"why": "reset"})],
        [Correction([(PLACE._replace(scope="bob"), None)], {"why": "reset"})],
        [Correction([(PLACE._replace(unit="output"), None)], {"why": "reset"})],
        [Correction([(PLACE._replace(window="2026-01"), None)], {"why": "reset"})],
        [Correction([(PLACE, None)], {"why": "repriced"})],
        [Correction([(PLACE, None)], {"why": "reset"})] * 2,
        [],
    ],
)
async def test_a_name_is_that_of_one_order(ledger, other):
    """Another one under it is refused, and changes nothing; of a window that is over, a reset is the same one still."""
    await take(ledger, "r1", "alice", LIMIT, want=300)
    await settle(ledger, "r1", 300)
    await ledger.correct("x", [Correction([(PLACE, None)], {"why": "reset"})])
    await take(ledger, "r2", "alice", LIMIT, want=20)
    await settle(ledger, "r2", 20)

    with pytest.raises(OtherOrder, match="'x' was used for another order"):
        await ledger.correct("x", other)

    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=20)
    later = PLACE._replace(window="2026-01-02")
    assert await ledger.correct("x", [Correction([(later, None)], {"why": "reset"})]) is None


async def test_a_charge_of_another_window_is_another_order(ledger):
    """It says of which."""
    await ledger.correct("x", [Correction([(PLACE, 7)])])

    with pytest.raises(OtherOrder):
        await ledger.correct("x", [Correction([(PLACE._replace(window="2026-01-02"), 7)])])


async def test_accounts_do_not_share(ledger):
    """One scope's holds leave another's budget alone, and so do a scope's other units and windows."""
    await take(ledger, "r1", "alice", LIMIT, want=1_000)

    for number, (scope, limit) in enumerate(
        [("bob", LIMIT), ("alice", Limit(1_000, Window.HOUR)), ("alice", Limit(1_000, Window.DAY, Unit.OUTPUT))]
    ):
        assert (await take(ledger, f"s{number}", scope, limit, want=1_000)).leased == 1_000


# ---------------------------------------------------------------- many limits


ORG = Line("org:acme", Limit(10_000, Window.MONTH, Unit.MONEY))
USER = Line("user:acme/alice", Limit(2_000, Window.DAY))
KEY = Line("key:key_1", Limit(500, Window.HOUR, Unit.OUTPUT))
ALL = (ORG, USER, KEY)


async def stands(ledger, lines=ALL):
    """What is spent and held of each."""
    accounts = [await ledger.balance(*line) for line in lines]
    return [(account.spent, account.held) for account in accounts]


async def test_a_request_holds_its_share_of_every_limit(ledger):
    """Money, tokens and output tokens, each as it counts; a settlement charges each of them alike."""
    grant = await ledger.open("r1", ALL, PRICE, Load(300, 200), Load(300, 1))
    held = await stands(ledger)

    await ledger.settle("r1", Tokens(input=250, output=100, cached=50))

    assert (grant.leased, grant.payable) == (200, 500)
    assert held == [(0, 300 * 2 + 200 * 6), (0, 500), (0, 200)]
    assert await stands(ledger) == [(200 * 2 + 50 * 1 + 100 * 6, 0), (350, 0), (100, 0)]
    assert await ledger.audit() == []


@pytest.mark.parametrize(
    ("want", "names"),
    [
        (Load(5_000, 1), ("org:acme", "$0.01 of $0.01", "2026-02-01", "needs $0.010006")),
        (Load(1_900, 200), ("user:acme/alice", "2000 tokens", "2026-01-02", "needs 2100 tokens")),
        (Load(10, 501), ("key:key_1", "500 output tokens", "2026-01-01T13:00", "needs 501 output tokens")),
    ],
)
async def test_a_request_that_one_limit_refuses_holds_nothing_of_any(ledger, want, names):
    """The refusal names scope, budget, reset and need."""
    with pytest.raises(Refused) as refused:
        await ledger.open("r1", ALL, PRICE, want, want)

    assert refused.value.reason is Reason.BUDGET
    assert [name for name in names if name not in refused.value.detail] == []
    assert await stands(ledger) == [(0, 0)] * 3
    assert await ledger.audit() == []


async def test_the_limit_that_never_can_is_named_before_one_that_cannot_now(ledger):
    """A client that waited for the second would wait in vain."""
    await ledger.open("r1", [ORG], PRICE, Load(4_000, 1), Load(4_000, 1))

    with pytest.raises(Refused) as refused:
        await ledger.open("r2", ALL, PRICE, Load(1_000, 501), Load(1_000, 501))

    assert refused.value.reason is Reason.BUDGET
    assert "key:key_1" in refused.value.detail


async def test_a_lease_is_what_the_tightest_limit_allows(ledger):
    """Of the org's money 100 output tokens are left after the input, though the key has 500."""
    grant = await ledger.open("r1", ALL, PRICE, Load(1_700, 1_000), Load(1_700, 1))

    assert grant.leased == (2_000 - 1_700)
    assert (await ledger.open("r2", [ORG], PRICE, Load(100, 10_000), Load(100, 1))).leased == (
        10_000 - 1_700 * 2 - 300 * 6 - 100 * 2
    ) // 6


async def test_a_top_up_trades_input_that_was_not_needed_for_output(ledger):
    """A bound for the prompt is held first; when its tokens are known, what was too much is free again."""
    await ledger.open("r1", ALL, PRICE, Load(1_000, 100), Load(1_000, 1))

    more = await ledger.extend("r1", Load(200, 300), 101)

    assert more.cover.output(200) == 300
    assert await stands(ledger) == [(0, 200 * 2 + 300 * 6), (0, 500), (0, 300)]
    assert await ledger.extend("r1", Load(200, 501), 501) == More(None, of_others=0)
    assert await ledger.extend("r1", Load(200, 900), 301) == More((await ledger.extend("r1", Load(200, 900), 1)).cover)
    assert await stands(ledger) == [(0, 200 * 2 + 500 * 6), (0, 700), (0, 500)]


async def test_waiting_for_others_is_worth_it_only_where_they_hold_what_lacks(ledger):
    """They hold some of the user's tokens, but the key's own output is at its end."""
    await ledger.open("r1", [USER], None, Load(0, 1_500), Load(0, 1))
    await ledger.open("r2", [USER, KEY], None, Load(0, 500), Load(0, 1))

    assert await ledger.extend("r2", Load(0, 600), 501) == More(None, of_others=0)
    assert await ledger.extend("r1", Load(0, 1_600), 1_501) == More(None, of_others=500)


async def test_less_is_enough_for_who_is_alone(ledger):
    """What lacks will not come, for nobody holds it; while somebody does, it may, and to wait is better."""

    def ask(name):
        return ledger.open(name, [USER], None, Load(100, 300), Load(100, 300), Load(100, 1))

    await ledger.open("r1", [USER], None, Load(0, 1_750), Load(0, 1))
    with pytest.raises(Refused) as held:
        await ask("r2")
    await ledger.settle("r1", Tokens(0, 1_750))
    alone = await ask("r3")
    await ledger.settle("r3", Tokens(100, 50))
    with pytest.raises(Refused) as spent:
        await ledger.open("r4", [USER], None, Load(100, 300), Load(100, 300), Load(100, 1))

    assert held.value.reason is Reason.HELD
    assert alone.leased == 150
    assert (spent.value.reason, "needs 101 tokens" in spent.value.detail) == (Reason.BUDGET, True)


async def test_free_models_cost_nothing_of_a_budget_in_money(ledger):
    """A price of nothing holds nothing, also where nothing is left."""
    spent = Line("org:poor", Limit(1, Window.TOTAL, Unit.MONEY))
    free = Price(0, 0, 0, 0)

    grant = await ledger.open("r1", [spent], free, Load(1_000_000, 1_000_000), Load(1_000_000, 1_000_000))
    await ledger.settle("r1", Tokens(1_000_000, 1_000_000))

    assert grant.leased == 1_000_000
    assert await stands(ledger, [spent]) == [(0, 0)]


# ---------------------------------------------------------------- callers that leave


async def test_a_cancelled_caller_leaves_no_hold(ledger):
    """Whenever its caller is cancelled, a grant either arrived or went back."""
    arrived = []

    async def ask(request_id):
        arrived.append((request_id, await take(ledger, request_id, "alice", LIMIT, want=1)))

    for i in range(60):
        task = asyncio.create_task(ask(f"r{i}"))
        for _ in range(i % 6):
            await asyncio.sleep(0)
        await asyncio.sleep(0.001 * (i % 4))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    for request_id, _ in arrived:
        await settle(ledger, request_id, 1)
    await ledger.audit()  # answered after all openings, whose grants are on their way back then

    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=len(arrived))
    assert await ledger.audit() == []


async def test_a_settlement_is_heard_although_its_caller_is_gone(ledger):
    """A step is on its way when the call returns, also when nobody awaits the answer."""
    await take(ledger, "r1", "alice", LIMIT, want=100)

    settle(ledger, "r1", 7).cancel()

    assert await ledger.balance("alice", LIMIT) == Account(1_000, spent=7)


async def test_a_closed_ledger_refuses(ledger):
    """After the end, callers are told that the books are unavailable; nobody hangs. Closing twice is no error."""
    await ledger.close()
    await ledger.close()

    with pytest.raises(Refused) as refused:
        await asyncio.wait_for(take(ledger, "r1", "alice", LIMIT, want=1), 1)

    assert refused.value.reason is Reason.BOOKS


# ---------------------------------------------------------------- any order of steps


LINES = (
    Line("org", Limit(700, Window.TOTAL, Unit.MONEY)),
    Line("org", Limit(160, Window.TOTAL, Unit.INPUT)),
    Line("user", Limit(220)),
    Line("key-a", Limit(100, Window.TOTAL, Unit.OUTPUT)),
    Line("key-b", Limit(130)),
)
REQUESTS = st.sampled_from(["r0", "r1", "r2", "r3"])
COUNTS = st.integers(0, 80)
OPENS = st.tuples(
    st.just("open"), REQUESTS, st.sets(st.sampled_from(LINES), min_size=1), COUNTS, COUNTS, st.integers(1, 80),
    st.none() | st.integers(1, 5),
)  # fmt: skip
STEPS = st.one_of(
    OPENS,
    st.tuples(st.just("extend"), REQUESTS, st.just(()), COUNTS, COUNTS, COUNTS, st.none()),
    st.tuples(st.just("settle"), REQUESTS, st.just(()), COUNTS, COUNTS, st.just(0), st.none()),
)


def sent(ledger, step):
    name, request_id, lines, inputs, outputs, least, alone = step
    if name == "open":
        ordered = [line for line in LINES if line in lines]
        enough = None if alone is None else Load(inputs, alone)
        return ledger.open(request_id, ordered, PRICE, Load(inputs, outputs), Load(inputs, least), enough)
    if name == "extend":
        return ledger.extend(request_id, Load(inputs, outputs), least)
    return ledger.settle(request_id, Tokens(inputs, outputs))


async def replay(ledger, steps):
    """Send all steps without waiting; return the answers, errors as values, and how all limits stand.

    One that lacks rights is taken when these are there, and so after others: there each waits for the one before.
    """
    answers = []
    for some in [[step] for step in steps] if isinstance(ledger, LeasedLedger) else [steps]:
        answers += await asyncio.gather(*[sent(ledger, step) for step in some], return_exceptions=True)
    return answers, {line: await ledger.balance(*line) for line in LINES}, await ledger.audit()


def cost(line, inputs, outputs):
    counts = {
        Unit.TOKENS: inputs + outputs,
        Unit.INPUT: inputs,
        Unit.OUTPUT: outputs,
        Unit.MONEY: 2 * inputs + 6 * outputs,
    }
    return counts[line.limit.unit]


class Books:
    """The same on plain numbers, by trying every number of tokens; written independently of the ledger."""

    def __init__(self):
        self.holds, self.spent = {}, Counter()

    def free(self, line, but=None):
        return (
            line.limit.amount
            - self.spent[line]
            - sum(amounts.get(line, 0) for name, amounts in self.holds.items() if name != but)
        )

    def most(self, lines, inputs, outputs, but=None):
        fits = [n for n in range(outputs + 1) if all(cost(line, inputs, n) <= self.free(line, but) for line in lines)]
        return max(fits, default=-1)

    def open(self, name, lines, inputs, outputs, least, alone):
        if name in self.holds:
            return ValueError
        short = [line for line in lines if cost(line, inputs, least) > self.free(line)]
        hopeless = any(not any(line in held for held in self.holds.values()) for line in short)
        needed = least if alone is None or not hopeless else alone
        if any(cost(line, inputs, needed) > self.free(line) for line in lines):
            ever = least if alone is None else alone
            never = any(cost(line, inputs, ever) > line.limit.amount - self.spent[line] for line in lines)
            return Reason.BUDGET if never else Reason.HELD
        leased = self.most(lines, inputs, outputs)
        self.holds[name] = {line: cost(line, inputs, leased) for line in lines}
        return leased

    def extend(self, name, lines, inputs, outputs, least, alone):
        held = self.holds.get(name)
        if held is None:
            return None
        leased = self.most(held, inputs, outputs, but=name)
        if leased < least:
            return None
        self.holds[name] = {line: cost(line, inputs, leased) for line in held}
        return leased

    def settle(self, name, lines, inputs, outputs, least, alone):
        held = self.holds.get(name)
        if held is None:
            return None
        if any(cost(line, inputs, outputs) > amount for line, amount in held.items()):
            return AssertionError
        costs = {line: cost(line, inputs, outputs) for line in held}
        self.spent.update(costs)
        del self.holds[name]
        return sorted((line.scope, line.limit.unit, amount) for line, amount in costs.items())


def plain(answer, step):
    """An answer, as `Books` gives it."""
    if isinstance(answer, Exception):
        return answer.reason if isinstance(answer, Refused) else type(answer)
    if isinstance(answer, Grant):
        return answer.leased
    if isinstance(answer, Charged):
        return sorted((at.scope, at.unit, amount) for at, amount in answer.charges)
    if isinstance(answer, More):
        return None if answer.cover is None else min(answer.cover.output(step[3]), step[4])
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, max_size=40))
def test_any_sequence_of_steps_keeps_the_books(engine, steps):
    """Whatever is opened, extended and settled in whatever order, under whatever limits: every answer is exact."""

    async def world(data):
        ledger = await opened(engine, Path(data), Clock())
        try:
            return await replay(ledger, steps)
        finally:
            await ledger.close()

    with tempfile.TemporaryDirectory() as data:
        answers, accounts, violations = asyncio.run(world(data))

    books = Books()
    expected = [getattr(books, step[0])(*step[1:]) for step in steps]
    assert [plain(answer, step) for answer, step in zip(answers, steps, strict=True)] == expected
    assert violations == []
    for line, account in accounts.items():
        assert account.held == sum(amounts.get(line, 0) for amounts in books.holds.values())
        assert (account.limit, account.spent) == (line.limit.amount, books.spent[line])
        assert account.held + account.spent + account.free == account.limit
