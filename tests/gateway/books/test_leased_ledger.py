"""Many gateways of one budget: never more than it over all of them, whatever is lost on the way."""

import asyncio
import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.books.corrections import reset, without_gateway
from gateway.books.ledger import gone as gone_module
from gateway.books.ledger import lease as lease_module
from gateway.books.ledger.contract import Correction, Grant, Lines, More, Place
from gateway.books.ledger.lease import IDLE_S, Wish
from gateway.books.ledger.leased import LOOK_S
from gateway.books.ledger.leased_steps import Limits
from gateway.books.ledger.register import Register
from gateway.books.ledger.sqlite import SqliteLedger
from gateway.books.vault import account as account_module
from gateway.books.vault.contract import LEASE_S, Claim, Gateway
from gateway.books.vault.memory import MemoryShelf
from guards.budget import UNLIMITED, Account, Limit, Line, Unit, Window
from guards.claim import Load
from guards.money import DOLLAR, Price, Tokens
from guards.refusal import Reason, Refused
from tests.gateways import NOON, Gateways, quiet
from tests.ledgers import extend, settle, take, tokens

LIMIT = Limit(1_000, Window.DAY)
LINE = Line("org:acme", LIMIT)
DAY = Place("org:acme", "tokens", "2026-01-01")


def asked(ledger, name, want, least=1, limit=LIMIT):
    return take(ledger, name, "org:acme", limit, want, least)


@pytest.fixture
async def gateways(tmp_path):
    """Two of them."""
    both = await Gateways(tmp_path, 2).start()
    yield both
    await both.close()


@pytest.fixture
def ledgers(gateways):
    return gateways.ledgers


async def told(gateways):
    """How the budget stands by the vault: spent, leased."""
    (standing,) = await gateways.vault.standings("")
    return standing.spent, standing.leased


# ---------------------------------------------------------------- one budget


async def test_what_one_gateway_holds_another_cannot(gateways, ledgers):
    """And who asks there is told of the whole budget."""
    first, second = ledgers
    one = await asked(first, "r1", 700)
    other = await asked(second, "r2", 700)
    with pytest.raises(Refused) as refused:
        await asked(second, "r3", 10)

    assert (one.leased, one.payable) == (700, 1_000)
    assert 200 <= other.leased <= 300  # the first one has a little more than it needs
    assert refused.value.reason is Reason.HELD
    assert "1000 tokens of 1000 tokens are left of the budget of org:acme" in refused.value.detail
    assert await gateways.stands(LINE) == (0, 700 + other.leased)


async def test_an_account_that_was_let_go_of_while_a_request_hopes_is_asked_for_again(gateways, ledgers):
    """A gateway that stood still finds it at rest; the request is answered all the same."""
    first, second = ledgers
    await asked(first, "r1", 1_000)
    lease = second._lease("")
    hopes = asyncio.ensure_future(asked(second, "r2", 10))
    while not lease.hoping:  # noqa: ASYNC110 - an event for tests would be one more
        await asyncio.sleep(0)

    lease.known.clear()
    lease.heard = {}

    with pytest.raises(Refused) as refused:
        await hopes
    assert refused.value.reason is Reason.HELD


async def test_many_that_come_at_once_to_an_ample_budget_are_all_let_in(gateways, ledgers):
    """Whoever was too late for one exchange asks for more in the next: nobody is refused what nobody lacks."""
    ample = Limit(10_000_000, Window.DAY)

    async def client(number):
        for turn in range(20):
            name = f"r{number}-{turn}"
            await asked(ledgers[0], name, 500, 500, ample)
            await settle(ledgers[0], name, 100)

    await asyncio.gather(*map(client, range(40)))

    assert (await gateways.stands(Line("org:acme", ample)))[0] == 40 * 20 * 100


async def test_what_is_spent_elsewhere_is_a_spent_budget_here(gateways, ledgers):
    """BUDGET, with what is left of the whole."""
    first, second = ledgers
    await asked(first, "r1", 995)
    await settle(first, "r1", 995)
    await gateways.pass_s(1)

    with pytest.raises(Refused) as refused:
        await asked(second, "r2", 10, least=10)

    assert refused.value.reason is Reason.BUDGET
    assert "5 tokens of 1000 tokens" in refused.value.detail
    assert 3 <= (await asked(second, "r3", 10)).leased <= 5


async def test_max_tokens_is_not_bounded_by_a_small_lease(gateways, ledgers):
    """What a grant says that the limits could pay at most is of the whole budget."""
    first, second = ledgers
    await asked(first, "r1", 300)
    await settle(first, "r1", 300)
    await gateways.pass_s(1)
    grant = await second.open("r2", [LINE], None, Load(0, 50), Load(0, 50), Load(0, 1))

    assert (grant.leased, grant.payable) == (50, 700)


async def test_rights_that_lie_idle_go_where_they_are_lacked(gateways, ledgers):
    """What a gateway does not use, it gives back within a second of another's need."""
    first, second = ledgers
    await asked(first, "r1", 1_000)
    await settle(first, "r1", 10)
    with pytest.raises(Refused):
        await asked(second, "r2", 500, least=500)
    await gateways.pass_s(1)

    assert (await asked(second, "r3", 990, least=900)).leased == 990


async def test_a_top_up_waits_for_what_others_may_give_back(gateways, ledgers):
    """It is told so; where they have spent it, that waiting is in vain."""
    first, second = ledgers
    await asked(first, "r1", 900)
    await asked(second, "r2", 100)

    assert await extend(second, "r2", 200, 101) == More(None, of_others=900)
    await settle(first, "r1", 900)
    await gateways.pass_s(1)
    assert await extend(second, "r2", 200, 101) == More(None, of_others=0)


async def test_a_top_up_leases_what_it_lacks(ledgers):
    """As long as the whole budget has it."""
    await asked(ledgers[0], "r1", 100)
    await asked(ledgers[1], "r2", 100)

    assert await extend(ledgers[1], "r2", 900, 101) == More(tokens(900))
    assert await extend(ledgers[0], "r1", 200, 101) == More(None, of_others=900)


async def test_less_is_enough_only_for_who_is_alone_among_all_gateways(gateways, ledgers):
    """While another one has what lacks, it may come."""
    first, second = ledgers
    await asked(first, "r1", 900)

    def ask(name):
        return second.open(name, [LINE], None, Load(0, 300), Load(0, 300), Load(0, 1))

    with pytest.raises(Refused) as held:
        await ask("r2")
    await settle(first, "r1", 900)
    await gateways.pass_s(2)

    assert held.value.reason is Reason.HELD
    assert (await ask("r3")).leased == 100


async def test_requests_that_lack_something_wait_for_one_exchange_together(gateways, ledgers):
    """A hundred at once cost a few exchanges, not a hundred."""
    opens = [asked(ledgers[0], f"r{i}", 10, least=10) for i in range(100)]

    answers = await asyncio.gather(*opens, return_exceptions=True)

    assert sum(isinstance(one, Grant) for one in answers) == 100
    assert gateways.ways[0].exchanges < 20


async def test_a_lowered_limit_binds_all_gateways(gateways, ledgers):
    """What is free of rights goes back at once, here and, with the next exchange, elsewhere."""
    first, second = ledgers
    await asked(first, "r1", 100)
    await asked(second, "r2", 300)
    await settle(second, "r2", 0)

    lowered = Limit(150, Window.DAY, as_of=NOON)
    assert await first.relimit(Line("org:acme", lowered))
    await gateways.pass_s(2)

    assert 100 <= (await first.balance("org:acme", lowered)).held <= 110
    assert 40 < (await asked(second, "r3", 300, limit=lowered)).leased <= 50
    assert (await extend(first, "r1", 200, 156)).cover is None


async def test_a_lowered_limit_binds_what_is_leased_before_the_vault_has_heard_it(gateways, ledgers):
    """Whoever brings the news: rights beyond the new limit are not spent meanwhile."""
    first = ledgers[0]
    await asked(first, "r1", 500)
    await settle(first, "r1", 0)
    gateways.ways[0].down = True
    with pytest.raises(Refused):
        await asked(first, "r2", 500, least=500, limit=Limit(150, Window.DAY, as_of=NOON))

    ((_, rights),) = await first.local.step(Limits())

    assert rights <= 150


async def test_money_and_tokens_are_leased_together(ledgers):
    """A request is under both; what one lacks holds nothing of the other."""
    lines = [Line("org:acme", Limit(1_200, Window.MONTH, Unit.MONEY)), LINE]
    price = Price(2 * DOLLAR, 6 * DOLLAR, DOLLAR, 6 * DOLLAR)
    grant = await ledgers[0].open("r1", lines, price, Load(100, 100), Load(100, 1))
    other = await ledgers[1].open("r2", lines, price, Load(100, 100), Load(100, 1))

    assert grant.leased == 100
    assert 0 < other.leased <= (1_200 - 800 - 200) // 6
    assert await ledgers[1].audit() == []


# ---------------------------------------------------------------- changes by operators


async def used_and_left(gateways, tokens, limit=LIMIT):
    """So much is spent of the budget at the first gateway; then nobody uses it, until nobody speaks of it."""
    first = gateways.ledgers[0]
    await asked(first, "before", tokens, least=tokens, limit=limit)
    await settle(first, "before", tokens)
    await gateways.pass_s(IDLE_S + 3)
    assert not any(lease.known for ledger in gateways.ledgers for lease in ledger.leases.values())


async def all_that_is_left(gateways, limit=LIMIT):
    """How much the gateways can spend by turns, in small requests, until none can any more."""
    spent = 0
    for turn in range(40):
        for number, ledger in enumerate(gateways.ledgers):
            with suppress(Refused):
                grant = await asked(ledger, f"{turn}-{number}", 100, least=1, limit=limit)
                await settle(ledger, f"{turn}-{number}", grant.leased)
                spent += grant.leased
        await gateways.pass_s(LOOK_S)
    return spent


@pytest.mark.parametrize("amounts", [(2_000, 1_500, 1_000), (500, 800, 2_000)])
async def test_a_limit_that_is_changed_while_nobody_uses_it_holds(gateways, ledgers, amounts):
    """The vault goes by when it was set, which nobody has to remember; lowered or raised, all of it can be spent."""
    early, later, last = (Limit(amount, Window.DAY, as_of=NOON + at) for at, amount in enumerate(amounts))
    await asked(ledgers[0], "r1", 10, limit=early)
    await settle(ledgers[0], "r1", 10)
    for ledger in ledgers:
        await ledger.relimit(Line("org:acme", later))
    await used_and_left(gateways, 10, later)
    for ledger in ledgers:
        await ledger.relimit(Line("org:acme", last))

    assert 20 + await all_that_is_left(gateways, last) == amounts[-1]


async def test_a_request_that_read_an_older_limit_does_not_bring_it_back(gateways, ledgers):
    """It may open its hold after the change, also where the account has been let go of meanwhile."""
    first, second = ledgers
    await used_and_left(gateways, 10, Limit(100, Window.DAY, as_of=NOON + 1))
    with suppress(Refused):
        await asked(second, "old", 500, least=500, limit=LIMIT)
    await gateways.pass_s(1)

    (standing,) = await gateways.vault.standings("")
    assert standing.limit == 100
    await asked(first, "r1", 50, limit=Limit(100, Window.DAY, as_of=NOON + 1))
    with suppress(Refused):
        await asked(first, "old", 500, least=500, limit=LIMIT)
    assert first.leases[""].known[DAY].limit == 100


async def test_a_limit_that_was_changed_while_a_gateway_was_down_is_told_with_its_next_request(gateways, ledgers):
    """Also where the rights that it has are enough for that."""
    await asked(ledgers[0], "r1", 400)
    await settle(ledgers[0], "r1", 10)
    await gateways.crash(0)

    await asked(gateways.ledgers[0], "r2", 10, limit=Limit(500, Window.DAY, as_of=NOON + 1))
    await gateways.pass_s(2)

    (standing,) = await gateways.vault.standings("")
    assert standing.limit == 500


async def test_a_budget_that_nobody_uses_can_be_reset(gateways, ledgers):
    """Where it was spent; the others can spend it then."""
    await used_and_left(gateways, 1_000)

    assert await ledgers[0].correct("x", reset(DAY))
    assert await ledgers[1].correct("x", reset(DAY))
    await quiet(ledgers[0])

    assert await told(gateways) == (0, 0)
    assert await ledgers[0].local.step(Limits()) == [(DAY, 0)]
    assert (await asked(ledgers[1], "r1", 1_000)).leased == 1_000


async def test_what_is_charged_of_a_budget_that_nobody_uses_is_not_spent_again(gateways, ledgers):
    """The vault hears of it, and goes on with the limit that it knows."""
    await used_and_left(gateways, 500)

    await ledgers[0].correct("x", [Correction([(DAY, 400)])])
    await quiet(ledgers[0])

    (standing,) = await gateways.vault.standings("")
    assert (standing.limit, standing.spent) == (1_000, 900)
    assert await ledgers[0].balance("org:acme", LIMIT) == Account(1_000, 900, 0)
    assert await all_that_is_left(gateways) == 100


async def test_a_correction_outlives_a_crash_right_after_it(gateways, ledgers):
    """The next start tells the vault."""
    await used_and_left(gateways, 500)
    gateways.ways[0].down = True
    await ledgers[0].correct("x", [Correction([(DAY, 400)])])
    await gateways.crash(0)
    gateways.ways[0].down = False
    await gateways.pass_s(1)

    assert await told(gateways) == (900, 0)


async def test_a_correction_without_a_gateway_is_told_at_its_next_start(gateways, ledgers):
    """Its books are corrected while it does not run; of a total, for that is done by the real clock."""
    total, ever = Limit(1_000), Place("org:acme", "tokens", "total")
    await used_and_left(gateways, 1_000, total)
    await ledgers[0].close()

    (done,) = await without_gateway(gateways.path(0), "x", reset(ever), lambda scope: "")
    ledgers[0] = await gateways._begun(0)

    assert done.charges == [(ever, -1_000)]
    assert (await asked(ledgers[1], "r1", 1_000, limit=total)).leased == 1_000


async def test_of_windows_that_are_over_the_vault_is_told_nothing(gateways, ledgers):
    """Nobody can spend of them, and a repricing may be about very many."""
    await used_and_left(gateways, 500)
    gateways.clock.now_s += 86_400

    assert await ledgers[0].correct("x", [Correction([(DAY, 400)])])

    assert not any(lease.known for lease in ledgers[0].leases.values())


async def test_a_correction_that_cannot_be_noted_is_not_made(gateways, ledgers):
    """Else a crash could keep it from the vault."""
    await used_and_left(gateways, 500)
    await ledgers[0].register.close()

    with pytest.raises(Refused):
        await ledgers[0].correct("x", reset(DAY))

    assert await gateways.stands(LINE) == (500, 0)
    ledgers[0].register = Register(gateways.path(0))


@pytest.mark.parametrize("idle", [True, False])
async def test_after_a_charge_beyond_its_rights_a_gateway_serves_the_next_request(gateways, ledgers, idle):
    """What it leases then is for that, not to make up for the charge."""
    plenty = Limit(1_000_000, Window.DAY)
    await asked(ledgers[0], "r1", 100, limit=plenty)
    await settle(ledgers[0], "r1", 100)
    await gateways.pass_s(IDLE_S + 3 if idle else 1)
    await ledgers[0].correct("x", [Correction([(DAY, 200_000)])])
    await gateways.pass_s(1)

    assert (await asked(ledgers[0], "r2", 100, least=100, limit=plenty)).leased == 100


async def test_a_stream_that_holds_nothing_of_a_limit_goes_on_when_that_was_let_go_of(gateways, ledgers, monkeypatch):
    """Its model costs nothing, and it runs for longer than an account is remembered; or just when that is forgotten."""
    monkeypatch.setattr(lease_module, "CLAIMS_MAX", 1)
    lines = Lines([LINE, Line("org:acme", Limit(1_000, Window.DAY, Unit.MONEY)), Line("key:k", Limit(UNLIMITED))])
    await ledgers[0].open("r1", lines, Price(0, 0, 0, 0), Load(0, 50), Load(0, 50))
    await gateways.pass_s(IDLE_S + 3)
    lease = ledgers[0].leases[""]
    assert {at.unit for at in lease.known} == {Unit.TOKENS}
    assert (await ledgers[0].extend("r1", Load(0, 300), 200)).cover is not None
    assert len(lease.known) == 3

    gateways.clock.now_s += IDLE_S + 1
    lease.renew()
    with capture_logs() as said:
        assert (await ledgers[0].extend("r1", Load(0, 900), 800)).cover is not None

    assert said == []


# ---------------------------------------------------------------- exchanges that get lost


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_lost_exchange_costs_nothing(gateways, ledgers, when):
    """Whether or not the vault had heard it: the next one says all again, and nothing is leased twice."""
    gateways.ways[0].lost = [when]
    with pytest.raises(Refused) as refused:
        await asked(ledgers[0], "r1", 400)

    grant = await asked(ledgers[0], "r2", 400)

    assert (refused.value.reason, refused.value.retry_after_s, grant.leased) == (Reason.BOOKS, 1.0, 400)
    assert (await asked(ledgers[1], "r3", 600)).leased == 600


async def test_without_the_vault_a_lease_is_used_until_its_time_is_over(gateways, ledgers):
    """Then nothing is let in and nothing topped up, the requests it covers must end, and all goes on with the vault."""
    first = ledgers[0]
    await asked(first, "r1", 500)
    await settle(first, "r1", 0)
    gateways.ways[0].down = True
    assert (await asked(first, "r2", 100)).leased == 100
    await gateways.pass_s(LEASE_S - 0.5)
    assert (await asked(first, "r3", 10)).leased == 10
    assert first.not_ready() == []
    assert not gateways.ended[0]

    await gateways.pass_s(1 + LOOK_S)
    with pytest.raises(Refused) as new:
        await asked(first, "r4", 10)
    with pytest.raises(Refused) as more:
        await extend(first, "r2", 200, 101)
    said, ended = first.not_ready(), gateways.ended[0]
    gateways.ways[0].down = False
    await gateways.pass_s(1)

    assert [(one.value.reason, one.value.retry_after_s) for one in (new, more)] == [(Reason.BOOKS, 1.0)] * 2
    assert (said, ended) == (["the vault cannot be reached"], True)
    assert first.not_ready() == []
    assert await settle(first, "r2", 100)
    assert (await asked(first, "r5", 10)).leased == 10


async def test_by_policy_rights_are_used_up_without_the_vault(tmp_path):
    """Whoever chose that goes on with what it has, and no further."""
    gateways = await Gateways(tmp_path, 1, goes_on=True).start()
    ledger = gateways.ledgers[0]
    await asked(ledger, "r1", 400)
    await settle(ledger, "r1", 0)
    gateways.ways[0].down = True
    await gateways.pass_s(2 * LEASE_S)

    grant = await asked(ledger, "r2", 400)
    with pytest.raises(Refused) as refused:
        await asked(ledger, "r3", 400)

    assert 0 < grant.leased <= 400
    assert refused.value.reason is Reason.BOOKS
    assert not gateways.ended[0]
    await gateways.close()


async def test_who_slept_past_its_lease_asks_before_it_spends(gateways, ledgers):
    """Stopped for twice its lease, a gateway says its numbers first."""
    first = ledgers[0]
    await asked(first, "r1", 400)
    await settle(first, "r1", 400)
    gateways.clock.now_s += 2 * LEASE_S
    before = gateways.ways[0].exchanges

    grant = await asked(first, "r2", 10)

    assert grant.leased == 10
    assert gateways.ways[0].exchanges > before
    assert (await told(gateways))[0] == 400


async def test_a_vault_that_may_have_forgotten_gives_nothing_until_all_have_spoken(gateways, ledgers):
    """What it had given before is said again by those that have it; then it goes on as if nothing had been."""
    first, second = ledgers
    await asked(first, "r1", 10)
    before = gateways.snapshot()
    await asked(first, "r2", 600)
    gateways.forget(before)

    with pytest.raises(Refused) as quiet_yet:
        await asked(second, "r3", 500)
    await gateways.pass_s(LEASE_S + 1)
    grant = await asked(second, "r4", 500)

    assert quiet_yet.value.reason is Reason.BOOKS
    assert 300 < grant.leased <= 390
    assert await gateways.stands(LINE) == (0, 610 + grant.leased)


async def test_a_fenced_gateway_spends_nothing_any_more(gateways, ledgers):
    """Once a newer start of it has spoken, or it was written off; its requests end, and operators see why."""
    first = ledgers[0]
    await asked(first, "r1", 400)
    await gateways.vault.exchange("", Gateway(gateways.names[0], 99, 1), [Claim(DAY, 1_000, 0, 400, 0)], True)
    await gateways.pass_s(2)

    with pytest.raises(Refused) as new:
        await asked(first, "r2", 1)
    with pytest.raises(Refused) as more:
        await extend(first, "r1", 500, 401)

    assert (new.value.reason, more.value.reason) == (Reason.BOOKS, Reason.BOOKS)
    assert "refuses this gateway" in first.not_ready()[0]
    assert gateways.ended[0]


async def test_an_emptied_vault_is_closed(gateways, ledgers):
    """Nobody spends what cannot be accounted for; an operator says what is true."""
    first = ledgers[0]
    await asked(first, "r1", 400)
    gateways.vault.__dict__["_shelf"] = MemoryShelf()
    await gateways.pass_s(1)
    with pytest.raises(Refused) as refused:
        await asked(first, "r2", 1)
    said = first.not_ready()
    await gateways.vault.begin(again=True)
    await gateways.pass_s(LEASE_S + 2)

    assert refused.value.reason is Reason.BOOKS
    assert "empty" in said[0]
    assert first.not_ready() == []
    assert (await asked(first, "r3", 1)).leased == 1
    assert 500 < (await asked(ledgers[1], "r4", 900)).leased <= 599


async def test_a_tag_that_the_vault_has_lost_is_not_made_anew(gateways, ledgers):
    """It might have known of more than this gateway does."""
    before = gateways.snapshot()
    await asked(ledgers[0], "r1", 400)
    gateways.forget(before)
    await gateways.pass_s(2 * LEASE_S)

    with pytest.raises(Refused) as refused:
        await asked(ledgers[0], "r2", 1)

    assert refused.value.reason is Reason.BOOKS
    assert "has lost its accounts" in ledgers[0].not_ready()[0]


# ---------------------------------------------------------------- ends and beginnings


async def test_a_crash_charges_what_was_held_of_its_own_rights_only(gateways, ledgers):
    """And the vault hears of it at the next start."""
    await asked(ledgers[0], "r1", 300)
    await asked(ledgers[1], "r2", 200)
    await gateways.crash(0)

    assert await gateways.stands(LINE) == (300, 200)
    assert (await told(gateways))[0] == 300
    assert not await settle(gateways.ledgers[0], "r1", 5)
    assert gateways.ledgers[0].recovered == {DAY: 300}


async def test_an_end_gives_all_back(gateways, ledgers):
    """What an orderly end leaves is free for the others at once."""
    await asked(ledgers[0], "r1", 600)
    await settle(ledgers[0], "r1", 100)
    await ledgers[0].close()
    await ledgers[0].close()

    assert await told(gateways) == (100, 0)
    assert (await asked(ledgers[1], "r2", 900)).leased == 900


async def test_an_end_in_the_middle_of_an_exchange_gives_all_back(gateways, ledgers):
    """Also what that exchange has just brought."""
    await asked(ledgers[0], "r1", 600)
    await settle(ledgers[0], "r1", 100)
    ledgers[0].leases[""].renew()
    for _ in range(3):
        await asyncio.sleep(0)

    await ledgers[0].close()

    assert await told(gateways) == (100, 0)


async def test_what_rests_is_not_spoken_of(gateways, ledgers):
    """A tag that is idle gives its rights back, and costs no exchange after that; it begins anew when it is used."""
    await asked(ledgers[0], "r1", 600)
    await settle(ledgers[0], "r1", 100)
    await gateways.pass_s(IDLE_S + 3)
    leased, exchanges = await told(gateways), gateways.ways[0].exchanges
    await gateways.pass_s(2 * IDLE_S)
    rested = gateways.ways[0].exchanges - exchanges
    grant = await asked(ledgers[0], "r2", 900)

    assert (leased, rested, ledgers[0].not_ready()) == ((100, 0), 0, [])
    assert grant.leased == 900
    assert not ledgers[1].leases


async def test_what_only_records_needs_no_rights_but_is_told(gateways, ledgers):
    """An account without a limit is never in anybody's way, and its use is seen at the vault."""
    gateways.ways[0].down = True
    line = Line("key:k", Limit(UNLIMITED))
    await ledgers[0].open("r1", [line], None, Load(0, 5_000), Load(0, 5_000))
    await ledgers[0].settle("r1", Tokens(output=4_000))
    gateways.ways[0].down = False
    await gateways.pass_s(1)

    (standing,) = await gateways.vault.standings("")
    assert (standing.place.scope, standing.limit, standing.spent) == ("key:k", None, 4_000)


async def test_what_was_spent_before_it_shared_is_told_before_anything_is_served(tmp_path):
    """A directory of a single gateway comes to others with its spend, and without more rights than that."""
    gateways = Gateways(tmp_path, 2)
    alone = SqliteLedger(gateways.path(0), gateways.clock)
    await asked(alone, "r1", 700)
    await settle(alone, "r1", 650)
    await alone.close()
    gateways.ways[0].down = True
    with pytest.raises(Refused) as unheard:
        await gateways.start()
    gateways.ways[0].down = False
    first, second = (await gateways.start()).ledgers

    assert "told to the vault" in unheard.value.detail
    assert (await asked(second, "r2", 900)).leased == 350
    assert await second.balance("org:acme", LIMIT) == Account(1_000, 650, 350)
    assert await first.balance("org:acme", LIMIT) == Account(1_000, 650, 0)
    await gateways.close()


async def test_two_that_shared_nothing_share_what_both_have_spent(tmp_path):
    """Neither keeps as its own what was left of the limit that each had for itself."""
    gateways = Gateways(tmp_path, 2)
    for number, spent in ((0, 300), (1, 250)):
        alone = SqliteLedger(gateways.path(number), gateways.clock)
        await asked(alone, "r1", spent)
        await settle(alone, "r1", spent)
        await alone.close()

    first, second = (await gateways.start()).ledgers
    gateways.ways[0].down = True
    grants = [await asked(second, "r2", 900)]
    with suppress(Refused):
        grants.append(await asked(first, "r3", 900))

    assert sum(one.leased for one in grants) == 450
    await gateways.close()


async def spends(ledger, name, tokens):
    await asked(ledger, name, tokens, least=tokens)
    await settle(ledger, name, tokens)


async def test_an_older_copy_of_a_gateways_books_spends_nothing(gateways, ledgers, tmp_path):
    """A backup of its data directory that is put back does not know what was spent after it was made."""
    await spends(ledgers[0], "r1", 100)
    await gateways.pass_s(1)
    backup = shutil.copytree(gateways.path(0), tmp_path / "backup")
    await spends(ledgers[0], "r2", 600)
    await gateways.pass_s(1)
    await ledgers[0].close()
    shutil.rmtree(gateways.path(0))
    shutil.copytree(backup, gateways.path(0))
    ledgers[0] = await gateways._begun(0)

    with pytest.raises(Refused) as refused:
        await asked(ledgers[0], "r3", 1)

    assert refused.value.reason is Reason.BOOKS
    assert "older copy" in ledgers[0].not_ready()[0]
    assert (await asked(ledgers[1], "r4", 900)).leased == 300


async def test_a_backup_does_not_bring_back_rights_that_were_given_back(gateways, ledgers, tmp_path):
    """What it had free may be another's by now, although it has spent no more since."""
    await asked(ledgers[0], "r1", 900)
    await settle(ledgers[0], "r1", 0)
    backup = shutil.copytree(gateways.path(0), tmp_path / "backup")
    await ledgers[0].close()
    shutil.rmtree(gateways.path(0))
    shutil.copytree(backup, gateways.path(0))
    grant = await asked(ledgers[1], "r2", 1_000)
    await settle(ledgers[1], "r2", grant.leased)

    ledgers[0] = await gateways._begun(0)
    with pytest.raises(Refused) as refused:
        await asked(ledgers[0], "r3", 1)

    assert grant.leased == 1_000
    assert refused.value.reason is Reason.HELD


async def test_of_two_that_begin_with_one_copy_the_first_goes_on(gateways, ledgers):
    """They have one name, one epoch, and may not both spend what it had."""
    await spends(ledgers[0], "r1", 100)
    await ledgers[0].close()
    shutil.rmtree(gateways.path(1))
    await ledgers[1].close()
    shutil.copytree(gateways.path(0), gateways.path(1))
    for number in (0, 1):
        ledgers[number] = await gateways._begun(number)

    assert (await asked(ledgers[0], "r2", 500)).leased == 500
    with pytest.raises(Refused) as refused:
        await asked(ledgers[1], "r3", 1)

    assert refused.value.reason is Reason.BOOKS
    assert "refuses this gateway" in ledgers[1].not_ready()[0]


async def test_a_correction_may_lower_what_is_spent(gateways, ledgers):
    """Whether the gateway makes it or begins with it: then its books are not older ones."""
    await spends(ledgers[0], "r1", 900)
    await gateways.pass_s(1)
    await ledgers[0].correct("goodwill", reset(DAY))
    await gateways.pass_s(1)
    await spends(ledgers[0], "r2", 500)
    await gateways.pass_s(1)
    await ledgers[0].close()
    local = SqliteLedger(gateways.path(0), gateways.clock)
    await local.correct("again", reset(DAY))
    await local.close()
    ledgers[0] = await gateways._begun(0)

    assert (await asked(ledgers[0], "r3", 900)).leased == 900


async def test_a_gateway_that_was_long_alone_comes_to_others(tmp_path, monkeypatch):
    """Of windows that are past nothing is told, and of however many sessions it had, all."""
    monkeypatch.setattr(lease_module, "ACCOUNTS_MAX", 100)
    monkeypatch.setattr(lease_module, "CLAIMS_MAX", 40)
    gateways = Gateways(tmp_path, 2)
    alone = SqliteLedger(gateways.path(0), gateways.clock)
    gateways.clock.now_s -= 150 * 60
    for number in range(150):
        gateways.clock.now_s += 60
        await take(alone, f"m{number}", "key:k", Limit(1_000, Window.MINUTE), 10)
        await settle(alone, f"m{number}", 10)
        await take(alone, f"s{number}", f"session:k/{number}", Limit(100), 10)
        await settle(alone, f"s{number}", 10)
    await alone.close()

    first, second = (await gateways.start()).ledgers
    places = [one.place for one in await gateways.vault.standings("")]
    grant = await take(second, "r1", "session:k/7", Limit(100), 100)
    await gateways.pass_s(1)

    assert (sum(at.scope == "key:k" for at in places), len(places)) == (1, 151)
    assert grant.leased == 90
    assert (await asked(first, "r2", 400)).leased == 400  # there is room for others
    await gateways.close()


# ---------------------------------------------------------------- gateways that are gone


@pytest.fixture
def quick(monkeypatch):
    """Looks at who is gone come as often as renewals."""
    monkeypatch.setattr(gone_module, "LOOK_S", 1.0)
    monkeypatch.setattr(gone_module, "CROWDED_S", 1.0)
    monkeypatch.setattr(gone_module, "SETTLED_S", 4.0)


async def fenced(gateways):
    """Which gateways were written off, by number."""
    heard = await gateways.vault.heard("")
    return [gateways.names.index(one.name) for one in heard if one.fenced]


async def test_a_gateway_that_finds_no_place_has_one_once_those_that_are_gone_are_written_off(
    tmp_path, quick, monkeypatch
):
    """As soon as all that live have had the time to speak; and it asks again with its next renewal."""
    monkeypatch.setattr(account_module, "GATEWAYS_MAX", 1)
    gateways = await Gateways(tmp_path, 2, gone_s=3600.0).start()
    dead, new = gateways.ledgers
    await spends(dead, "r1", 300)
    await asked(dead, "r2", 200)
    await gateways.pass_s(8)  # it says that it is there
    await dead.local.close()  # it dies
    await dead.register.close()
    gateways.ledgers = [new]
    gateways.clock.now_s += 3590.0
    with pytest.raises(Refused) as early:
        await asked(new, "r3", 10)
    gateways.clock.now_s += 20.0
    with capture_logs() as said:
        await gateways.pass_s(10)
    grant = await asked(new, "r4", 500)

    assert early.value.reason is Reason.BOOKS
    assert {one["gateway"] for one in said if one["event"] == "gateway.written_off"} == {gateways.names[0]}
    assert await fenced(gateways) == [0]
    assert grant.leased == 1_000 - (await told(gateways))[0] <= 500
    await gateways.close()


async def test_an_idle_gateway_is_never_written_off(tmp_path, quick):
    """Nobody speaks of an org that it does not use, for weeks; then it is used there again."""
    gateways = await Gateways(tmp_path, 2, gone_s=3600.0).start()
    first, second = gateways.ledgers
    await used_and_left(gateways, 100)
    for hour in range(6):
        gateways.clock.now_s += 1800.0
        await spends(second, f"r{hour}", 10)
        await gateways.pass_s(8)

    assert await fenced(gateways) == []
    await spends(first, "again", 50)
    assert (await gateways.stands(LINE))[0] == 210
    await gateways.close()


async def test_a_gateway_that_is_one_off_leaves_nothing_behind_but_what_it_spent(tmp_path):
    """Nobody has to wait for its place, and all that it had free is the others'."""
    gateways = await Gateways(tmp_path, 2, one_off=True).start()
    pod, other = gateways.ledgers
    await spends(pod, "r1", 130)
    await asked(other, "r2", 10)
    await pod.close()

    assert await fenced(gateways) == [0]
    assert (await told(gateways))[0] == 130
    await settle(other, "r2", 0)
    assert (await asked(other, "r3", 870)).leased == 870
    await gateways.close()


async def test_under_tags_that_were_not_used_lately_it_leaves_too(tmp_path):
    """Its rights are back there since."""
    gateways = await Gateways(tmp_path, 1, one_off=True).start()
    await used_and_left(gateways, 130)
    await gateways.pass_s(IDLE_S + 3)
    assert not gateways.ledgers[0].leases

    await gateways.close()

    assert await fenced(gateways) == [0]
    assert await told(gateways) == (130, 0)


@pytest.mark.parametrize("why", ["holds", "the vault is away"])
async def test_one_that_has_not_given_all_back_does_not_write_itself_off(tmp_path, why):
    """It is as after a crash: what it has may be spent, and others write it off in time."""
    gateways = await Gateways(tmp_path, 1, one_off=True).start()
    pod = gateways.ledgers[0]
    await asked(pod, "r1", 130)
    if why != "holds":
        await settle(pod, "r1", 130)
        gateways.ways[0].down = True

    await pod.close()

    assert await fenced(gateways) == []
    assert sum(await told(gateways)) >= 130


@pytest.mark.parametrize("lost", [None, "after"])
async def test_what_the_vault_may_have_given_last_is_not_left_behind(tmp_path, lost):
    """Its last word came with rights for somebody that still waited, or was lost: it is as after a crash."""
    gateways = await Gateways(tmp_path, 1, one_off=True).start()
    pod = gateways.ledgers[0]
    await spends(pod, "r1", 130)
    lease = pod.leases[""]
    await lease.end()
    before = lease.given_back
    gateways.ways[0].lost = [lost]
    waits = asyncio.ensure_future(lease.ask({DAY: Wish(50, 50, 50)}))
    await pod.close()
    await waits

    assert before
    assert await fenced(gateways) == []


async def test_a_start_that_failed_is_not_the_end_of_a_one_off(tmp_path):
    """Its port may be in use after a crash: it is started again, and has its rights."""
    gateways = await Gateways(tmp_path, 1, one_off=True).start()
    await spends(gateways.ledgers[0], "r1", 130)
    await gateways.crash(0)
    gateways.ledgers[0].serves = False
    await gateways.ledgers[0].close()

    assert await fenced(gateways) == []


async def test_one_that_is_to_come_back_does_not_write_itself_off(gateways, ledgers):
    """As all others are."""
    await spends(ledgers[0], "r1", 130)
    await ledgers[0].close()

    assert await fenced(gateways) == []
    assert await told(gateways) == (130, 0)


# ---------------------------------------------------------------- how many accounts


def session_of(key, name, limit=50):
    return Lines.under([Line(f"key:{key}", Limit(limit)), Line(f"session:{key}/{name}", Limit(100))], "", ())


async def ask_of(ledger, lines, name):
    try:
        await ledger.open(name, lines, None, Load(0, 100), Load(0, 100))
    except Refused as refused:
        return refused.reason, refused.detail
    await settle(ledger, name, 100)
    return None


async def test_sessions_of_a_key_that_can_pay_nothing_are_not_known(gateways, ledgers):
    """Clients make up as many as they like; the other keys go on."""
    first, lease = ledgers[0], ledgers[0]._lease("")
    at_once = await asyncio.gather(*(ask_of(first, session_of("bad", n), f"a{n}") for n in range(200)))
    await gateways.pass_s(1)
    few, exchanges = len(lease.known), gateways.ways[0].exchanges
    later = [await ask_of(first, session_of("bad", n), f"b{n}") for n in range(200)]

    assert {reason for reason, _ in at_once + later} == {Reason.BUDGET}
    assert all("of the budget of key:bad" in detail for _, detail in later)
    assert few <= 2
    assert (len(lease.known), gateways.ways[0].exchanges) == (few, exchanges)
    assert len(first.register.entries()) == few
    assert await ask_of(first, session_of("good", "s", 1_000), "c") is None


async def test_sessions_that_were_refused_while_the_vault_was_away_are_forgotten(gateways, ledgers):
    """It never hears of them."""
    first, lease = ledgers[0], ledgers[0]._lease("")
    gateways.ways[0].down = True
    refused = await asyncio.gather(*(ask_of(first, session_of("k", n, 1_000), f"a{n}") for n in range(50)))
    gateways.ways[0].down = False
    await gateways.pass_s(2)

    assert {reason for reason, _ in refused} == {Reason.BOOKS}
    assert not [at for at in lease.known if at.scope.startswith("session:")]


async def test_who_waits_is_answered_amid_a_renewal_of_many_accounts(gateways, ledgers, monkeypatch):
    """And a renewal that takes long does not let the lease run out."""
    monkeypatch.setattr(lease_module, "CLAIMS_MAX", 8)
    first, lease = ledgers[0], ledgers[0]._lease("")
    for number in range(24):
        assert await ask_of(first, session_of("k", number, 100_000), f"a{number}") is None
    way, heard = gateways.ways[0], []

    async def slowly(tag, me, claims, known):
        gateways.clock.now_s += 0.6  # four pages: longer than the half of a lease
        heard.append([one.place.scope for one in claims])
        await asyncio.sleep(0)
        return await gateways.vault.exchange(tag, me, claims, known)

    monkeypatch.setattr(way, "exchange", slowly)
    for number in range(5):
        renewal = lease.renew()
        while not lease._renewing:  # noqa: ASYNC110 - an event for tests would be one more
            await asyncio.sleep(0)
        assert await ask_of(first, session_of("k", f"new{number}", 100_000), f"b{number}") is None
        assert not renewal.done()
        while not renewal.done():
            assert lease.valid
            await asyncio.sleep(0)

    assert max(map(len, heard)) == 8


# ---------------------------------------------------------------- how much


async def test_steady_use_is_leased_ahead(tmp_path):
    """At a steady hundred requests a second there are few exchanges, and no request waits for one."""
    gateways = await Gateways(tmp_path, 4).start()
    plenty = Limit(10_000_000, Window.DAY)
    for second in range(8):
        if second == 4:
            before = [way.exchanges for way in gateways.ways]
        for tick in range(4):
            for number, ledger in enumerate(gateways.ledgers):
                for i in range(6):
                    name = f"{second}-{tick}-{number}-{i}"
                    await asked(ledger, name, 300, least=300, limit=plenty)
                    await settle(ledger, name, 250)
            await gateways.pass_s(LOOK_S)
    exchanges = sum(way.exchanges - was for way, was in zip(gateways.ways, before, strict=True))
    await gateways.close()

    assert exchanges / (4 * 4 * 4 * 6) < 0.2


async def test_a_budget_that_many_gateways_ask_for_is_used_up(tmp_path):
    """With more demand than budget, over four gateways, at least 99 in 100 tokens are spent, and none too many."""
    gateways = await Gateways(tmp_path, 4).start()
    limit = Limit(100_000, Window.DAY)
    running = []
    for turn in range(120):
        for number, ledger in enumerate(gateways.ledgers):
            for i in range(4):
                name = f"{turn}-{number}-{i}"
                with suppress(Refused):
                    ask = ledger.open(name, [Line("org:acme", limit)], None, Load(0, 300), Load(0, 300), Load(0, 1))
                    running.append((ledger, name, min(250, (await ask).leased)))
        for ledger, name, used in running[:-16]:
            await settle(ledger, name, used)
        running = running[-16:]
        await gateways.pass_s(LOOK_S)
    for ledger, name, used in running:
        await settle(ledger, name, used)
    spent, holds = await gateways.stands(Line("org:acme", limit))
    await gateways.close()

    assert holds == 0
    assert 99_000 <= spent <= 100_000


# ---------------------------------------------------------------- whatever happens


LINES = (LINE, Line("user:acme/a", Limit(600, Window.DAY)), Line("key:b", Limit(4_000, Window.DAY, Unit.MONEY)))
PRICE = Price(2 * DOLLAR, 6 * DOLLAR, DOLLAR, 6 * DOLLAR)
NAMES = st.sampled_from(["r0", "r1", "r2", "r3", "r4"])
NUMBERS, COUNTS, LEASTS = st.integers(0, 3), st.integers(0, 400), st.integers(1, 300)
EVENTS = st.one_of(
    st.tuples(
        st.just("open"), NUMBERS, NAMES, st.sets(st.sampled_from(LINES), min_size=1), COUNTS, st.integers(1, 300)
    ),
    st.tuples(st.just("extend"), NUMBERS, NAMES, COUNTS),
    st.tuples(st.just("settle"), NUMBERS, NAMES, st.integers(0, 100)),
    st.tuples(st.just("lose"), NUMBERS, st.lists(st.sampled_from(["before", "after", None]), max_size=3)),
    st.tuples(st.just("pass"), st.sampled_from([0.25, 1.0, 3.0, 7.0])),
    st.tuples(st.just("sleep"), st.sampled_from([3.0, 12.0])),
    st.tuples(st.just("crash"), NUMBERS),
    st.tuples(st.just("remember")),
    st.tuples(st.just("forget")),
)


class World:
    """Gateways to which events happen, and what is known of them from outside."""

    def __init__(self, gateways):
        self.gateways = gateways
        self.holds: dict[tuple[int, str], int] = {}  # output tokens that it has, at least
        self.remembered = gateways.snapshot()

    async def happen(self, event):
        kind, *rest = event
        if kind in ("open", "extend", "settle", "lose", "crash"):
            rest[0] %= len(self.gateways.ledgers)
        await getattr(self, kind if kind != "pass" else "pass_s")(*rest)

    async def open(self, number, name, lines, outputs, least):
        ordered = [line for line in LINES if line in lines]
        ask = self.gateways.ledgers[number].open(
            name, ordered, PRICE, Load(20, outputs), Load(20, least), Load(20, 1) if least % 2 else None
        )
        with suppress(Refused, ValueError):
            self.holds[number, name] = (await ask).leased

    async def extend(self, number, name, outputs):
        try:
            more = await self.gateways.ledgers[number].extend(name, Load(20, outputs), 1)
        except Refused:
            return
        if more.cover is not None:
            self.holds[number, name] = min(more.cover.output(20), outputs)

    async def settle(self, number, name, percent):
        used = Tokens(20, self.holds.pop((number, name), 0) * percent // 100)
        first = await self.gateways.ledgers[number].settle(name, used)
        assert not await self.gateways.ledgers[number].settle(name, used), "settled twice"
        assert first or not used.output

    async def lose(self, number, what):
        self.gateways.ways[number].lost = what

    async def pass_s(self, seconds):
        await self.gateways.pass_s(seconds)

    async def sleep(self, seconds):
        self.gateways.clock.now_s += seconds

    async def crash(self, number):
        self.holds = {at: held for at, held in self.holds.items() if at[0] != number}
        await self.gateways.crash(number)

    async def remember(self):
        self.remembered = self.gateways.snapshot()

    async def forget(self):
        """All live, and can say what they have within a lease's time."""
        for way in self.gateways.ways:
            way.lost = []
        self.gateways.forget(self.remembered)
        if not await self.gateways.vault.standings(""):  # it has lost all: an operator says that it is to go on
            await self.gateways.vault.begin(again=True)
        await self.gateways.pass_s(1.25)

    async def over(self):
        """The limits that more was spent and is held of than there is."""
        stands = {line: await self.gateways.stands(line) for line in LINES}
        return {line: stood for line, stood in stands.items() if sum(stood) > line.limit.amount}

    async def end(self):
        """All settle, and say so; then the vault's numbers are theirs."""
        for way in self.gateways.ways:
            way.lost = []
        for number, name in list(self.holds):
            await self.settle(number, name, 100)
        await self.gateways.pass_s(2)
        spent = Counter({line.scope: (await self.gateways.stands(line))[0] for line in LINES})
        known = Counter({one.place.scope: one.spent for one in await self.gateways.vault.standings("")})
        return spent, known


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(count=st.integers(2, 4), events=st.lists(EVENTS, max_size=40))
def test_whatever_happens_no_budget_is_exceeded(count, events):
    """Exchanges lost, gateways dead and back, vaults that forgot: never more is spent and held than there is."""

    async def world(folder):
        gateways = await Gateways(folder, count).start()
        one = World(gateways)
        try:
            for event in events:
                await one.happen(event)
                assert await one.over() == {}
            spent, known = await one.end()
            assert +spent == +known
            for ledger in gateways.ledgers:
                assert await ledger.audit() == []
        finally:
            await gateways.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(world(Path(folder)))
