"""The journal says what the ledger charged: no more at any time, no less after any crash."""

import asyncio
import os
import sqlite3
import time
from collections import Counter
from functools import partial

import msgspec
import pytest

from gateway.books import replay
from gateway.books.journal import Journal
from gateway.books.journal_file import FACT_BYTES_MAX
from gateway.books.ledger.contract import Place
from gateway.books.ledger.hold import Hold
from gateway.books.ledger.sqlite import SqliteLedger
from gateway.books.ledger.tables import CHARGES_MAX, connect, in_facts, prune, read_outbox
from gateway.books.outbox import Outbox
from guards.budget import Limit, Line
from guards.claim import Load
from guards.money import Tokens

ABOUT = {"key_id": "key_1", "user": "alice", "model": "tiny"}
PLACE = Place("key:key_1", "tokens", "total")


class Books:
    """A ledger and a journal in one folder, joined as `app` joins them; they can die together."""

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "journal.jsonl"
        self.journal = Journal(self.path, time.time, flush_s=0.001)
        self.ledger = SqliteLedger(folder, time.time)
        self.outbox = Outbox(self.ledger, self.journal)
        self.caught_up = self.outbox.begin(partial(replay.facts, self.path))
        self.ledger.on_batch(self.outbox.batch)

    async def charge(self, name, used, *, told=True, lines=1):
        """Hold and settle, as a request does; `told`: its fact is appended, as its record does."""
        limits = [Line("key:key_1" if number == 0 else f"scope:{number}", Limit(1_000)) for number in range(lines)]
        grant = await self.ledger.open(name, limits, None, Load(0, 100), Load(0, 1))
        with Hold(self.ledger, name, grant, 0) as hold:
            hold.about = ABOUT
            hold.meter.spend(used)
        done = asyncio.Event()

        def settled(charged, first):
            if told:
                self.journal.append("request.settled", {"request_id": name}, {"charges": charged.charges})
            done.set()

        hold.settlement.then = settled
        await done.wait()

    async def left(self):
        """What the outbox has, once it had time."""
        for _ in range(200):
            await self.ledger.audit()
            await self.charge("poke", 0)  # a batch takes with it what the journal has by then
            if not read_outbox(self.db, self.folder):
                break
            await asyncio.sleep(0.005)
        return read_outbox(self.db, self.folder)

    @property
    def db(self):
        return self.ledger._writer._db

    async def end(self):
        await self.ledger.close()
        self.journal.close()

    def charged(self):
        return replay.replay(self.path).charged

    def spent(self):
        db = connect(self.folder)
        rows = db.execute("SELECT scope, unit, window, spent FROM accounts WHERE spent > 0").fetchall()
        db.close()
        return {Place(*at): spent for *at, spent in rows}


@pytest.fixture
async def books(tmp_path):
    made = Books(tmp_path)
    yield made
    await made.end()


async def test_what_the_journal_has_leaves_the_outbox(books):
    """It holds what is on its way, and not all that ever was."""
    for number in range(20):
        await books.charge(f"r{number}", 3)

    assert await books.left() == []
    await books.end()
    assert books.charged() == Counter({PLACE: 60}) == Counter(books.spent())


async def test_what_the_journal_has_not_yet_stays(books, monkeypatch):
    """While the journal's disk hangs, nothing is let go of."""
    monkeypatch.setattr(Journal, "_written", lambda self, batch: False)
    await books.charge("r1", 5)
    await books.charge("r2", 7)

    told = [
        (one.request_id, one.charges, one.used) for row in read_outbox(books.db, books.folder) for one in row.charged
    ]
    assert told == [("r1", [(PLACE, 5)], Tokens(0, 5)), ("r2", [(PLACE, 7)], Tokens(0, 7))]
    monkeypatch.undo()


@pytest.mark.parametrize("lines", [1, CHARGES_MAX + 3])
async def test_a_charge_that_the_journal_never_heard_of_is_told_at_the_next_start(tmp_path, lines):
    """With whom and what it was for; and what it has heard of is not told twice."""
    first = Books(tmp_path)
    await first.charge("heard", 4, lines=lines)
    first.ledger.on_batch(lambda number: None)  # it dies before the journal's flush
    await first.charge("unheard", 6, told=False, lines=lines)
    await first.end()

    second = Books(tmp_path)
    caught_up = second.caught_up
    await second.end()
    third = Books(tmp_path)
    await third.end()

    assert (caught_up, third.caught_up) == (lines, 0)
    assert second.charged() == Counter(second.spent())
    assert second.charged()[PLACE] == 10
    told = [fact for fact in replay.facts(second.path) if fact.request_id == "unheard"]
    assert {fact.kind for fact in told} == {"request.charged"}
    assert (told[0].user, told[0].model, told[0].completion_tokens) == ("alice", "tiny", 6)
    assert sum(fact.completion_tokens for fact in told) == 6


def test_a_fact_tells_no_more_than_the_journal_takes():
    """However long the names are, and however many."""
    long = [(Place(f"user:{number}" + "ä" * 500, "tokens", "total"), 1) for number in range(9)]
    many = [(Place(f"user:{number}", "tokens", "total"), 1) for number in range(3 * CHARGES_MAX)]

    for charges in (long, many):
        parts = [part for part, _ in in_facts(charges)]
        assert [one for part in parts for one in part] == charges
        assert all(len(msgspec.json.encode(part)) < FACT_BYTES_MAX // 2 for part in parts)
    assert [(len(part), more) for part, more in in_facts(many)] == [(CHARGES_MAX, number < 2) for number in range(3)]
    assert (in_facts(long[:2]), in_facts([])) == ([(long[:2], False)], [])


async def test_a_charge_that_is_half_told_is_told_to_its_end(tmp_path):
    """Not its tokens again: who adds up what was spent counts them once."""
    first = Books(tmp_path)
    first.ledger.on_batch(lambda number: None)
    await first.charge("half", 6, told=False, lines=CHARGES_MAX + 2)
    one = read_outbox(first.db, tmp_path)[-1].charged[0]
    told = {"request_id": "half", "charges": one.charges[:2], "prompt_tokens": 0, "completion_tokens": 6}
    first.journal.append("request.settled", {}, told)
    await first.end()

    second = Books(tmp_path)
    await second.end()

    assert second.caught_up == CHARGES_MAX
    assert second.charged() == Counter(second.spent())
    assert sum(fact.completion_tokens for fact in replay.facts(second.path)) == 6


async def test_what_a_dead_process_had_held_is_told_as_it_is_charged(tmp_path):
    """Account by account, under a name of its own."""
    first = Books(tmp_path)
    limits = [Line(f"scope:{number}", Limit(1_000)) for number in range(CHARGES_MAX + 1)]
    await first.ledger.open("r1", limits, None, Load(0, 100), Load(0, 1))
    first.ledger._closed = True  # it never settles
    await first.ledger._writer.close()
    first.journal.close()
    os.close(first.ledger._lock)

    second = Books(tmp_path)
    await second.end()

    assert second.caught_up == CHARGES_MAX + 1
    assert (
        second.charged()
        == Counter(second.spent())
        == Counter({Place(f"scope:{n}", "tokens", "total"): 100 for n in range(CHARGES_MAX + 1)})
    )
    assert {fact.kind for fact in replay.facts(second.path)} == {"ledger.recovered"}


async def test_a_ledger_of_an_older_format_is_told_whole(tmp_path):
    """What was spent before there was an outbox is in the journal once."""
    db = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)
    db.executescript("""
        CREATE TABLE accounts (key_id TEXT, window TEXT, limit_tokens INTEGER, spent INTEGER, held INTEGER);
        INSERT INTO accounts VALUES ('key_1', 'total', 1000, 70, 30);
        PRAGMA user_version = 2;
    """)
    db.close()

    for expected in (2, 0):
        books = Books(tmp_path)
        await books.end()
        assert books.caught_up == expected

    assert books.charged() == Counter({PLACE: 100}) == Counter(books.spent())


DAYS = 86_400


async def test_accounts_that_nobody_asks_for_again_are_let_go_of(tmp_path):
    """Of windows long past, and of sessions and agents that stopped coming; the journal stays equal."""
    now_s = 1_800_000_000.0
    old_s, older_s = now_s - 31 * DAYS, now_s - 63 * DAYS
    kept = [
        ("key:a", "total", older_s, 0), ("key:a", "2026-12", old_s, 0), ("session:a/new", "total", now_s - DAYS, 0),
        ("key:a", "2026-10-02", older_s, 7),
    ]  # fmt: skip
    gone = [("key:a", "2026-10", older_s, 0), ("session:a/b", "total", old_s, 0), ("agent:a/c", "2026-12", old_s, 0)]
    db = connect(tmp_path)
    db.executemany(
        "INSERT INTO accounts VALUES (?, 'tokens', ?, 100, 10, ?, ?)",
        [(scope, window, held, touched) for scope, window, touched, held in kept + gone],
    )
    assert prune(db, tmp_path, now_s) == len(gone)
    assert prune(db, tmp_path, now_s) == 0
    left = {(scope, window) for scope, window in db.execute("SELECT scope, window FROM accounts")}
    (told,) = read_outbox(db, tmp_path)
    db.close()

    assert left == {(scope, window) for scope, window, *_ in kept}
    assert dict(told.charged[0].charges) == {Place(scope, "tokens", window): -10 for scope, window, *_ in gone}


async def test_what_was_let_go_of_is_at_nothing_in_the_journal(tmp_path):
    """After the next start the two are equal, though one of them has the account no more."""
    first = Books(tmp_path)
    await first.charge("r1", 5)
    await first.end()
    db = connect(tmp_path)
    db.execute("UPDATE accounts SET scope = 'session:key_1/s', touched = 0")
    db.close()
    lines = (tmp_path / "journal.jsonl").read_text().replace("key:key_1", "session:key_1/s")
    (tmp_path / "journal.jsonl").write_text(lines)
    db = connect(tmp_path)
    db.execute("DELETE FROM outbox")
    db.close()

    second = Books(tmp_path)
    await second.end()

    assert (second.spent(), +second.charged()) == ({}, Counter())
    assert "ledger.pruned" in {fact.kind for fact in replay.facts(second.path)}
