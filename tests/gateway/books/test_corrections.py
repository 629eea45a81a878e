"""Corrections: each made once, told in the journal, and whatever else happens, the books are equal."""

import asyncio
import os
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.books import replay
from gateway.books.corrections import Corrections, LeftOut, encoded, made, nameable, reset, without_gateway
from gateway.books.journal import Journal
from gateway.books.keys import Keys
from gateway.books.ledger.contract import Correction, Place
from gateway.books.ledger.orders import OtherOrder
from gateway.books.ledger.sqlite import SqliteLedger
from gateway.books.ledger.tables import (
    CORRECTED_S_MAX,
    LedgerInUse,
    lock,
    read_account,
    read_balances,
    was_corrected,
)
from gateway.books.outbox import Outbox
from guards.budget import Account, Limit, Line, Unit, Window
from guards.claim import Load
from guards.money import DOLLAR, Price, Tokens
from guards.refusal import Refused

NOW_S = 1_800_000_000.0
PRICE = Price(2 * DOLLAR, 6 * DOLLAR, 2 * DOLLAR, 6 * DOLLAR)
AT = Place("org:acme", "tokens", "total")


class Books:
    """Ledger, journal and keys of one folder, joined as `app` joins them."""

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "journal.jsonl"
        self.journal = Journal(self.path, lambda: NOW_S, flush_s=0.001)
        self.ledger = SqliteLedger(folder, lambda: NOW_S)
        self.outbox = Outbox(self.ledger, self.journal)
        self.outbox.begin(partial(replay.facts, self.path))
        self.ledger.on_batch(self.outbox.batch)
        self.corrections = Corrections(self.ledger, self.outbox)

    async def spend(self, name, tokens, scope="org:acme"):
        await self.ledger.open(name, [Line(scope, Limit(10_000))], None, Load(0, tokens), Load(0, 1))
        await self.ledger.settle(name, Tokens(output=tokens))
        self.journal.append("request.settled", {"request_id": name}, {"charges": [(Place(scope, *AT[1:]), tokens)]})

    async def end(self):
        await self.ledger.close()
        self.journal.close()

    def differences(self):
        spent = {Place(*row[:3]): row.spent for row in read_balances(self.folder) if row.spent}
        return replay.differences(replay.replay(self.path).charged, spent)


@pytest.fixture
async def books(tmp_path):
    made = Books(tmp_path)
    yield made
    await made.end()


async def test_an_account_is_begun_anew_once(books):
    """What is held stays held, and the journal tells what was given back."""
    await books.spend("r1", 300)
    await books.ledger.open("r2", [Line("org:acme", Limit(10_000))], None, Load(0, 50), Load(0, 50))

    first = await books.corrections.make("x", reset(AT))
    await books.spend("r3", 7)
    again = await books.corrections.make("x", reset(AT))

    assert [one.charges for one in first] == [[(AT, -300)]]
    assert again is None
    assert await books.ledger.balance("org:acme", Limit(10_000)) == Account(10_000, spent=7, held=50)
    await books.ledger.settle("r2", Tokens(output=50))
    await books.end()
    (told,) = [one for one in replay.facts(books.path) if one.kind == "ledger.corrected"]
    assert (told.request_id, told.why, told.charges) == ("correction-x/0", "reset", [(AT, -300)])


async def test_a_correction_is_made_once_over_restarts(books):
    """Its name is in the ledger, from the transaction that made it on."""
    await books.spend("r1", 300)
    await books.corrections.make("x", reset(AT))
    await books.spend("r2", 40)
    await books.end()
    again = Books(books.folder)

    assert await again.corrections.make("x", reset(AT)) is None
    assert (await again.ledger.balance("org:acme", Limit(10_000))).spent == 40
    await again.end()
    assert again.differences() == []


async def test_what_a_crash_keeps_from_the_journal_is_told_at_the_next_start(books):
    """Also of a correction that charges nothing, for it may say more than that."""
    await books.spend("r1", 300)
    corrections = [*reset(AT), Correction([], {"why": "repriced", "model": "m", "price": PRICE, "first": 1, "last": 2})]
    await books.ledger.correct("x", corrections)  # and nobody tells the outbox: it died
    await books.ledger.close()
    books.journal.close()

    again = Books(books.folder)
    await again.end()

    told = [(one.request_id, one.why, one.charges) for one in replay.facts(books.path) if one.kind != "request.settled"]
    assert told == [("correction-x/0", "reset", [(AT, -300)]), ("correction-x/1", "repriced", [])]
    once_more = Books(books.folder)
    await once_more.end()
    assert len(list(replay.facts(books.path))) == 3


async def test_no_more_is_given_back_than_was_spent(books):
    """And accounts that nobody ever used are passed over."""
    await books.spend("r1", 30)
    nowhere = Place("org:other", "tokens", "total")

    (done,) = await books.corrections.make("x", [Correction([(AT, -100), (nowhere, 5), (nowhere, None)])])

    assert done.charges == [(AT, -30)]
    assert (await books.ledger.balance("org:acme", Limit(10_000))).spent == 0
    assert await books.ledger.audit() == []


async def test_more_may_be_charged_than_the_limit_is(books):
    """Then nothing is free until the limit is raised."""
    await books.spend("r1", 30)

    await books.corrections.make("x", [Correction([(AT, 20_000)])])

    assert (await books.ledger.balance("org:acme", Limit(10_000))).free == 0
    with pytest.raises(Refused):
        await books.spend("r2", 1)


async def test_who_waits_for_a_correction_may_leave(books):
    """It is made and told all the same."""
    await books.spend("r1", 30)

    books.corrections.make("x", reset(AT)).cancel()
    await books.ledger.audit()
    await books.end()

    assert [one.charges for one in replay.facts(books.path)] == [[(AT, 30)], [(AT, -30)]]


async def test_without_a_gateway_it_is_made_as_by_one_that_begins(books):
    """What a dead one held is charged first; while one runs it is left alone."""
    await books.spend("r1", 30)
    with pytest.raises(LedgerInUse):
        await without_gateway(books.folder, "x", reset(AT))
    assert not was_corrected(books.folder, "x", reset(AT))
    await books.ledger.open("r2", [Line("org:acme", Limit(10_000))], None, Load(0, 50), Load(0, 50))
    await books.end()

    (done,) = await without_gateway(books.folder, "x", reset(AT))

    assert done.charges == [(AT, -80)]
    assert was_corrected(books.folder, "x", reset(AT))
    assert books.differences() == []
    assert await without_gateway(books.folder, "x", reset(AT)) is None


def key_store(folder):
    """Opens it, again and again."""
    return lambda: closing(Keys(folder / "keys.db"))


def test_what_a_correction_passes_over_is_named(tmp_path):
    """Workers' parent keeps the ledger of the gateway that was alone before them; it is made up once that has ended."""

    async def spent(folder):
        ledger = SqliteLedger(folder, lambda: NOW_S)
        await ledger.open("r", [Line("org:acme", Limit(100))], None, Load(0, 7), Load(0, 1))
        await ledger.settle("r", Tokens(output=7))
        await ledger.close()

    for folder in (tmp_path, tmp_path / "worker-0"):
        asyncio.run(spent(folder))
    parents = lock(tmp_path)
    keys = key_store(tmp_path)
    with pytest.raises(LeftOut, match="once more under the id goodwill"):
        made(tmp_path, "goodwill", reset(AT), keys, 1.0)
    left = {folder.name: read_account(folder, AT).spent for folder in (tmp_path, tmp_path / "worker-0")}
    elsewhere = made(tmp_path, "other", reset(Place("org:other", "tokens", "total")), keys, 1.0)
    os.close(parents)

    assert left == {tmp_path.name: 7, "worker-0": 0}
    assert elsewhere
    assert made(tmp_path, "goodwill", reset(AT), keys, 1.0)
    assert read_account(tmp_path, AT).spent == 0


OTHER = Place("org:other", "tokens", "total")


async def test_the_order_of_an_older_holdfast_is_taken_for_any(books):
    """It kept names alone; also while one that runs has not the table yet."""
    await books.spend("r1", 30)
    await books.corrections.make("x", reset(AT))
    await books.end()
    with closing(sqlite3.connect(books.folder / "ledger.sqlite3", isolation_level=None)) as db:
        db.execute("DELETE FROM orders")
    assert await without_gateway(books.folder, "x", reset(OTHER)) is None
    with closing(sqlite3.connect(books.folder / "ledger.sqlite3", isolation_level=None)) as db:
        db.execute("DROP TABLE orders")

    assert was_corrected(books.folder, "x", reset(OTHER))
    again = Books(books.folder)
    assert await again.corrections.make("x", reset(OTHER)) is None
    await again.corrections.make("y", reset(AT))
    with pytest.raises(OtherOrder):
        await again.corrections.make("y", reset(OTHER))
    await again.end()


async def test_an_older_holdfast_goes_on_with_the_file(books):
    """It writes names of corrections, in a table that has become no wider."""
    await books.end()

    with closing(sqlite3.connect(books.folder / "ledger.sqlite3", isolation_level=None)) as db:
        db.execute("INSERT INTO corrected SELECT value, 0 FROM json_each('[\"x\"]')")

    assert was_corrected(books.folder, "x", reset(AT))


async def test_what_is_forgotten_of_a_correction_is_forgotten_whole(books):
    """Its name and what it said: then the name may be another order's."""
    await books.corrections.make("x", reset(AT))
    await books.corrections.make("y", reset(AT))
    await books.end()

    later = SqliteLedger(books.folder, lambda: NOW_S + CORRECTED_S_MAX + 1)

    assert await later.correct("x", reset(OTHER)) is not None
    await later.close()
    with closing(sqlite3.connect(books.folder / "ledger.sqlite3")) as db:
        assert db.execute("SELECT name FROM orders").fetchall() == [("x",)]


def test_of_many_ledgers_none_makes_an_order_whose_id_one_knows_for_another(tmp_path):
    """Nor where it waits for a gateway."""
    keys = key_store(tmp_path)
    first, second = (tmp_path / f"worker-{number}" for number in range(2))
    for folder in (first, second):
        asyncio.run(without_gateway(folder, "begin", reset(AT)))
    asyncio.run(without_gateway(second, "x", reset(AT)))
    with keys() as waiting:
        waiting.order("waits", encoded(reset(AT)))

    for name in ("x", "waits"):
        with pytest.raises(OtherOrder):
            made(tmp_path, name, reset(OTHER), keys, 1.0)

    assert not was_corrected(first, "x", reset(OTHER))
    assert not was_corrected(first, "waits", reset(OTHER))
    assert made(tmp_path, "x", reset(AT), keys, 1.0)
    assert not made(tmp_path, "x", reset(AT), keys, 1.0)
    assert made(tmp_path, "waits", reset(AT), keys, 1.0)


def test_two_orders_at_once_under_one_id_are_not_taken_for_one(tmp_path, monkeypatch):
    """The gateway hears of the first; whoever gave the other one is told, and does not wait for it."""
    keys = Keys(tmp_path / "keys.db")
    asyncio.run(without_gateway(tmp_path, "begin", reset(AT)))
    runs = lock(tmp_path)
    ordered = keys.order

    def after_another(name, said):
        ordered(name, encoded(reset(AT)))
        return ordered(name, said)

    monkeypatch.setattr(keys, "order", after_another)
    monkeypatch.setattr(keys, "close", lambda: None)
    with pytest.raises(OtherOrder):
        made(tmp_path, "x", reset(OTHER), partial(closing, keys), 1.0)
    os.close(runs)

    assert keys.ordered("x") == encoded(reset(AT))


def test_orders_are_bounded():
    """In their names and in their size."""
    with pytest.raises(ValueError, match="20,000 accounts"):
        encoded([Correction([(AT, 1)] * 20_001)])
    for name in ("", "x" * 129, "a\nb", "ü"):
        with pytest.raises(ValueError, match="an id is"):
            nameable(name)


# ---------------------------------------------------------------- any order of steps

MONEY, DAY = Limit(4_000, Window.MONTH, Unit.MONEY), Limit(900, Window.DAY)
LINES = {"org:acme": MONEY, "user:acme/a": DAY}
NAMES, SCOPES = st.sampled_from(["a", "b", "c", "d"]), st.sampled_from(sorted(LINES))
STEPS = st.one_of(
    st.tuples(st.just("open"), NAMES, SCOPES, st.integers(1, 400)),
    st.tuples(st.just("extend"), NAMES, SCOPES, st.integers(1, 600)),
    st.tuples(st.just("settle"), NAMES, SCOPES, st.integers(0, 400)),
    st.tuples(st.just("top_up"), NAMES, SCOPES, st.integers(1, 500)),
    st.tuples(st.just("reset"), NAMES, SCOPES, st.just(0)),
    st.tuples(st.just("correct"), NAMES, SCOPES, st.integers(-800, 800)),
)


class World:
    """The real books, and beside them what they should come to, on plain numbers."""

    def __init__(self, folder):
        self.books = Books(folder)
        self.keys = Keys(folder / "keys.db", clock=lambda: NOW_S)
        self.keys.set_limits({at: (limit,) for at, limit in LINES.items()})
        self.secret, _ = self.keys.create("a", "acme")
        self.extra, self.spent, self.held = Counter(), Counter(), {}
        self.names, self.made = {}, set()

    async def take(self, name, request, at, amount):
        lines = [line for line in self.keys.tenant(self.secret).lines if line.scope in LINES]
        place = Place(at, LINES[at].unit.value, LINES[at].window.id_at(NOW_S))
        ledger = self.books.ledger
        if name == "open" and request not in self.held:
            try:
                grant = await ledger.open(request, lines, PRICE, Load(0, amount), Load(0, 1))
            except Refused:
                return
            self.held[request] = dict(zip(LINES, grant.cover.amounts, strict=True))
        elif name == "extend" and request in self.held:
            more = await ledger.extend(request, Load(0, amount), 1)
            if more.cover is not None:
                self.held[request] = dict(zip(LINES, more.cover.amounts, strict=True))
        elif name == "settle" and request in self.held:
            used = min(amount, *(held // (6 if at == "org:acme" else 1) for at, held in self.held.pop(request).items()))
            await ledger.settle(request, Tokens(output=used))
            charges = {"org:acme": 6 * used, "user:acme/a": used}
            self.spent.update(charges)
            told = [
                (Place(at, LINES[at].unit.value, LINES[at].window.id_at(NOW_S)), due) for at, due in charges.items()
            ]
            self.books.journal.append("request.settled", {"request_id": request}, {"charges": told})
        elif name == "top_up":
            try:
                _, new = self.keys.top_up(f"{request}-{at}", at, Limit(amount, LINES[at].window, LINES[at].unit))
            except ValueError:
                return  # the name is another one's
            self.extra[at] += amount if new else 0
            for line in self.keys.news().limits:
                await ledger.relimit(line)
        elif name in ("reset", "correct"):
            due = None if name == "reset" else amount
            known = self.names.setdefault(order := f"{name}-{request}-{at}", due)
            try:
                done = await self.books.corrections.make(order, [Correction([(place, due)])])
            except OtherOrder:
                assert known != due
                return
            assert known == due
            assert (done is None) == (order in self.made)
            self.made.add(order)
            if done is not None:
                self.spent[at] += sum(change for _, change in done[0].charges)

    async def check(self):
        for line in self.keys.tenant(self.secret).lines:
            if line.scope in LINES:
                account = await self.books.ledger.balance(*line)
                held = sum(one[line.scope] for one in self.held.values())
                assert account == Account(
                    LINES[line.scope].amount + self.extra[line.scope], self.spent[line.scope], held
                )
                assert account.free == max(0, account.limit - account.spent - account.held)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, max_size=30))
def test_any_order_of_steps_keeps_the_books_equal(steps):
    """held + spent + free = limit and its top-ups, after each step; and the journal comes to what the ledger says."""

    async def world(folder):
        books = World(Path(folder))
        for step in steps:
            await books.take(*step)
            await books.check()
        for request in list(books.held):
            await books.take("settle", request, "org:acme", 0)
        await books.books.end()
        books.keys.close()
        assert books.books.differences() == []

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(world(folder))
