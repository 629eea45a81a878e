"""What only the ledger on disk can promise: surviving a kill, a full disk, and a second gateway."""

import asyncio
import signal
import sqlite3
import sys
import threading
import time
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from gateway.books.ledger.contract import More, Place
from gateway.books.ledger.sqlite import SqliteLedger
from gateway.books.ledger.tables import Balance, LedgerInUse, connect, read_balances, was_corrected
from guards.budget import UNLIMITED, Account, Limit
from guards.refusal import Reason, Refused
from tests.ledgers import extend, settle, take, tokens

LIMIT = Limit(100_000)

VICTIM = """
import asyncio, pathlib, sys, time
from gateway.books.ledger.sqlite import SqliteLedger
from guards.budget import Limit
from tests.ledgers import extend, settle, take

async def main():
    ledger = SqliteLedger(pathlib.Path(sys.argv[1]), time.time)
    for i in range(5):
        await take(ledger, f"r{i}", "alice", Limit(100_000), want=100)
    await extend(ledger, "r0", 150, 101)
    await settle(ledger, "r4", 7)
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
async def ledger(tmp_path):
    ledger = SqliteLedger(tmp_path, time.time)
    yield ledger
    await ledger.close()


def database(ledger):
    """The writer's own connection, to break it where no outside hand can."""
    return ledger._writer._db


class Broken:
    """A step that writes, then fails."""

    def __init__(self, error):
        self.error = error

    def apply(self, shelf, now_s):
        shelf.write(shelf.cell(Place("victim", "tokens", "total")), Account(100, spent=100))
        raise self.error


class Busy:
    """A step that begins a batch of its own and takes until it is told to end."""

    def __init__(self):
        self.begun, self.end = threading.Event(), threading.Event()

    def apply(self, shelf, now_s):
        self.begun.set()
        self.end.wait(5)


async def refusal(awaitable):
    with pytest.raises(Refused) as refused:
        await awaitable
    return refused.value


@pytest.mark.slow
async def test_a_killed_gateway_has_charged_what_it_may_have_delivered(tmp_path):
    """After a kill -9, all that was held is charged, and what was settled as it was settled."""
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", VICTIM, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert await victim.stdout.readline() == b"ready\n"
        with pytest.raises(LedgerInUse, match=str(tmp_path)):
            SqliteLedger(tmp_path, time.time)
        assert read_balances(tmp_path) == [Balance("alice", "tokens", "total", 100_000, spent=7, held=450)]
    finally:
        victim.send_signal(signal.SIGKILL)
        await victim.wait()

    ledger = SqliteLedger(tmp_path, time.time)

    assert ledger.recovered == {Place("alice", "tokens", "total"): 450}
    assert await ledger.balance("alice", LIMIT) == Account(100_000, spent=457)
    assert await ledger.audit() == []
    assert not await settle(ledger, "r0", 1)
    await ledger.close()


async def test_an_orderly_end_leaves_nothing_to_recover(tmp_path):
    """What was settled stays as it was settled across a restart, and no hold is charged."""
    first = SqliteLedger(tmp_path, time.time)
    await take(first, "r1", "alice", LIMIT, want=100)
    settle(first, "r1", 30)
    await first.close()

    second = SqliteLedger(tmp_path, time.time)

    assert second.recovered == {}
    assert await second.balance("alice", LIMIT) == Account(100_000, spent=30)
    await second.close()


async def test_a_data_directory_has_one_gateway(ledger, tmp_path):
    """A second ledger on the same directory is told so by name, and the first goes on unharmed."""
    await take(ledger, "r1", "alice", LIMIT, want=100)

    with pytest.raises(LedgerInUse, match=str(tmp_path)):
        SqliteLedger(tmp_path, time.time)

    assert await ledger.balance("alice", LIMIT) == Account(100_000, held=100)


async def test_commits_wait_for_the_disk(ledger):
    """The file is in WAL mode with full synchronisation: a commit that was answered is on the platter."""
    pragmas = [database(ledger).execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]

    assert pragmas == ["wal", 2]


async def test_steps_that_wait_share_a_commit(ledger):
    """Hundreds of steps at once cost a handful of commits, but never more than 256 steps in one."""
    before = ledger.commits

    await asyncio.gather(*(take(ledger, f"r{i}", "alice", LIMIT, want=1) for i in range(1_000)))

    assert 4 <= ledger.commits - before <= 40


async def test_a_full_disk_refuses_and_is_left_behind(ledger):
    """While the file cannot grow, callers are refused and nothing changes; then it works without a restart."""
    await take(ledger, "r1", "alice", LIMIT, want=100)
    pages = database(ledger).execute("PRAGMA page_count").fetchone()[0]
    database(ledger).execute(f"PRAGMA max_page_count = {pages}")

    keys = [f"{i:0500}" for i in range(100)]
    answers = await asyncio.gather(*(take(ledger, key, key, LIMIT, want=1) for key in keys), return_exceptions=True)
    during = [(await ledger.balance(key, LIMIT)).held for key in keys]
    database(ledger).execute("PRAGMA max_page_count = 1000000")

    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert {(answer.reason, answer.retry_after_s) for answer in refused} == {(Reason.BOOKS, 1.0)}
    assert during == [0 if isinstance(answer, Refused) else 1 for answer in answers]
    assert await ledger.audit() == []
    assert (await take(ledger, "r2", "alice", LIMIT, want=1)).leased == 1


@pytest.mark.slow
async def test_a_locked_file_refuses_and_is_left_behind(ledger, tmp_path):
    """While a stranger has the file locked, callers are refused; once it lets go, they are served."""
    stranger = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")

    refused = await refusal(take(ledger, "r1", "alice", LIMIT, want=1))
    stranger.execute("ROLLBACK")

    assert refused.reason is Reason.BOOKS
    assert (await take(ledger, "r1", "alice", LIMIT, want=1)).leased == 1
    stranger.close()


async def test_a_broken_ledger_is_one_line_in_the_log(ledger, tmp_path):
    """However many batches are refused, the log says once that it broke, and once that it is well again."""
    pages = database(ledger).execute("PRAGMA page_count").fetchone()[0]
    with capture_logs() as log:
        database(ledger).execute(f"PRAGMA max_page_count = {pages}")
        for i in range(20):
            with suppress(Refused):
                await take(ledger, f"r{i}", f"{i:0500}", LIMIT, want=1)
        unhealthy = not ledger.healthy
        database(ledger).execute("PRAGMA max_page_count = 1000000")
        await take(ledger, "later", "alice", LIMIT, want=1)

    assert unhealthy
    assert ledger.healthy
    assert [line["event"] for line in log] == ["ledger.commit_failed", "ledger.commits_again"]


@pytest.mark.slow
async def test_a_ledger_finds_out_by_itself_that_it_can_be_written_again(ledger, tmp_path):
    """A gateway that is asked nothing, since it is not ready, becomes ready."""
    stranger = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    await refusal(take(ledger, "r1", "alice", LIMIT, want=1))
    unhealthy = not ledger.healthy
    stranger.execute("ROLLBACK")

    for _ in range(1_000):
        await asyncio.sleep(0 if ledger.healthy else 0.02)

    assert unhealthy
    assert ledger.healthy
    stranger.close()


class Unwritable:
    """A connection whose file can be read only."""

    def __init__(self, db):
        self.db = db

    @property
    def in_transaction(self):
        return self.db.in_transaction

    def execute(self, statement):
        if "user_version" in statement:
            raise sqlite3.OperationalError("disk I/O error")
        return self.db.execute(statement)


async def test_reading_does_not_make_a_ledger_healthy(ledger):
    """While the file cannot be written, a batch that would only read is refused too: it proves nothing."""
    await take(ledger, "r1", "alice", LIMIT, want=10)
    await refusal(ledger._writer.put(Broken(sqlite3.OperationalError("disk I/O error"))))
    db = database(ledger)
    ledger._writer._db = Unwritable(db)

    await refusal(ledger.balance("alice", LIMIT))

    assert not ledger.healthy
    ledger._writer._db = db
    assert await ledger.balance("alice", LIMIT) == Account(100_000, held=10)


@pytest.mark.parametrize("name", ["ledger.sqlite3", "ledger.sqlite3-wal"])
async def test_a_file_that_was_removed_is_not_written_to(ledger, tmp_path, name):
    """SQLite would go on in a file that is gone with the process; put back, it is used again."""
    await take(ledger, "r1", "alice", LIMIT, want=10)
    (tmp_path / name).rename(tmp_path / "away")

    refused = await refusal(take(ledger, "r2", "alice", LIMIT, want=10))
    (tmp_path / "away").rename(tmp_path / name)

    assert refused.reason is Reason.BOOKS
    assert (await take(ledger, "r2", "alice", LIMIT, want=10)).leased == 10


def test_a_damaged_file_is_named_at_the_start(tmp_path):
    """Neither garbage nor a torn page in a sound file gets as far as serving; the lock is let go of."""
    file = tmp_path / "ledger.sqlite3"
    file.write_bytes(b"x" * 8192)
    with pytest.raises(Refused, match=f"{file}.*not a database"):
        SqliteLedger(tmp_path, time.time)

    file.unlink()
    db = connect(tmp_path)
    db.executemany(
        "INSERT INTO accounts VALUES (?, 'tokens', 'total', 1, 0, 0, 0)", [(f"{number:0500}",) for number in range(200)]
    )
    db.close()
    damaged = bytearray(file.read_bytes())
    damaged[5 * 4096 : 7 * 4096] = b"\x55" * 2 * 4096
    file.write_bytes(damaged)
    with pytest.raises(Refused, match=str(file)):
        SqliteLedger(tmp_path, time.time)
    with pytest.raises(Refused, match=str(file)):
        read_balances(tmp_path)


def test_a_newer_ledger_is_left_alone(tmp_path):
    """A ledger of a later version is refused by name, not misread."""
    db = connect(tmp_path)
    db.execute("PRAGMA user_version = 99")
    db.close()

    with pytest.raises(Refused, match=r"ledger\.sqlite3.*newer"):
        SqliteLedger(tmp_path, time.time)


@pytest.mark.parametrize("format_of_old", [1, 2])
async def test_a_ledger_of_an_older_format_is_taken_over(tmp_path, format_of_old):
    """It knew keys and tokens only, and the first had a row for each hold too. What was held is charged once."""
    db = sqlite3.connect(tmp_path / "ledger.sqlite3", isolation_level=None)
    db.executescript(f"""
        CREATE TABLE accounts (
            key_id TEXT NOT NULL, window TEXT NOT NULL, limit_tokens INTEGER NOT NULL, spent INTEGER NOT NULL,
            held INTEGER NOT NULL, PRIMARY KEY (key_id, window)
        ) WITHOUT ROWID;
        INSERT INTO accounts VALUES ('alice', 'total', 100000, 7, 30);
        PRAGMA user_version = {format_of_old};
    """)
    if format_of_old == 1:
        db.execute("CREATE TABLE holds (request_id TEXT PRIMARY KEY, key_id TEXT, window TEXT, leased INTEGER)")
        db.execute("INSERT INTO holds VALUES ('r1', 'alice', 'total', 30)")
    db.close()
    assert not was_corrected(tmp_path, "x", [])  # it is asked before anybody has taken it over

    ledger = SqliteLedger(tmp_path, time.time)

    assert ledger.recovered == {Place("key:alice", "tokens", "total"): 30}
    assert await ledger.balance("key:alice", LIMIT) == Account(100_000, spent=37)
    assert (await take(ledger, "r1", "key:alice", LIMIT, want=1)).leased == 1
    tables = database(ledger).execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert tables == [("accounts",), ("corrected",), ("orders",), ("corrections",), ("outbox",)]
    await ledger.close()


async def test_one_step_s_error_is_its_caller_s_alone(ledger):
    """A bug or a refusal in a batch undoes that step and leaves its neighbours committed."""
    answers = await asyncio.gather(
        take(ledger, "r1", "alice", LIMIT, want=10),
        take(ledger, "r1", "alice", LIMIT, want=10),
        take(ledger, "r2", "bob", Limit(1 << 80), want=1 << 70),
        take(ledger, "r3", "carol", Limit(0), want=1),
        settle(ledger, "r1", 11),
        take(ledger, "r4", "alice", LIMIT, want=10),
        return_exceptions=True,
    )

    kinds = [type(answer).__name__ for answer in answers]
    assert kinds == ["Grant", "ValueError", "OverflowError", "Refused", "AssertionError", "Grant"]
    assert await ledger.balance("alice", LIMIT) == Account(100_000, held=20)
    assert await ledger.balance("bob", LIMIT) == Account(100_000)
    assert await ledger.audit() == []


@pytest.mark.parametrize("error", [KeyError("bug"), sqlite3.IntegrityError("CHECK constraint failed")])
async def test_a_step_that_fails_half_way_is_undone(ledger, error):
    """What a step wrote before its error is not committed with its neighbours."""
    answers = await asyncio.gather(
        take(ledger, "r1", "alice", LIMIT, want=10), ledger._writer.put(Broken(error)), return_exceptions=True
    )

    assert answers[0].leased == 10
    assert answers[1] is error
    assert await ledger.balance("victim", Limit(100)) == Account(100)


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), sqlite3.DatabaseError("malformed")])
async def test_an_error_of_the_file_undoes_the_batch(ledger, error):
    """When the file fails, all of the batch are refused and none of it is written; the next batch is served."""
    busy = Busy()  # until both others wait, so that they share the next batch
    ledger._writer.put(busy)
    assert busy.begun.wait(5)
    before = asyncio.ensure_future(take(ledger, "r1", "alice", LIMIT, want=10))
    broken = ledger._writer.put(Broken(error))
    busy.end.set()

    refused = [await refusal(before), await refusal(broken)]

    assert {each.reason for each in refused} == {Reason.BOOKS}
    assert await ledger.balance("alice", LIMIT) == Account(100_000)
    assert await ledger.balance("victim", Limit(100)) == Account(100)
    assert (await take(ledger, "r1", "alice", LIMIT, want=10)).leased == 10
    assert await ledger.audit() == []


async def test_a_full_queue_refuses_all_but_settlements(tmp_path):
    """Beyond `commands_max` waiting steps, callers are refused at once; a hold can be settled even then."""
    ledger = SqliteLedger(tmp_path, time.time, commands_max=10)
    await take(ledger, "r1", "alice", LIMIT, want=10)
    busy = Busy()
    ledger._writer.put(busy)
    assert busy.begun.wait(5)

    asked = [extend(ledger, "r1", 10 + number, 1) for number in range(50)]
    refused_at_once = [answer for answer in asked if answer.done()]
    settled = settle(ledger, "r1", 3)
    busy.end.set()

    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert len(refused_at_once) == 40
    assert [answer for answer in answers if isinstance(answer, More)] == [More(tokens(10 + n)) for n in range(10)]
    assert {answer.reason for answer in answers if isinstance(answer, Refused)} == {Reason.BOOKS}
    assert await settled
    await ledger.close()


async def test_a_caller_cancelled_as_its_grant_arrives_holds_nothing(ledger):
    """Cancelled after the commit but before it could go on, a caller never saw the grant: it goes back."""

    async def ask():
        opening = take(ledger, "r1", "alice", LIMIT, want=100)
        # Runs when the answer is there, in the same turn of the loop, before the caller does.
        opening.answer.add_done_callback(lambda _: task.cancel())
        await opening

    task = asyncio.create_task(ask())
    with pytest.raises(asyncio.CancelledError):
        await task

    await asyncio.sleep(0)
    assert await ledger.balance("alice", LIMIT) == Account(100_000)


async def test_closing_gives_back_what_cancelled_callers_were_granted(tmp_path):
    """A grant whose caller was cancelled just before the end is not charged at the next start."""
    ledger = SqliteLedger(tmp_path, time.time)
    task = asyncio.create_task(asyncio.wait_for(take(ledger, "r1", "alice", LIMIT, want=100), 5))
    await asyncio.sleep(0)
    task.cancel()

    await ledger.close()

    assert read_balances(tmp_path) == [Balance("alice", "tokens", "total", 100_000, spent=0, held=0)]


async def test_a_cancelled_caller_does_not_break_its_batch(ledger):
    """The neighbours of a step whose caller is gone are answered."""
    opens = [asyncio.ensure_future(take(ledger, f"r{i}", "alice", LIMIT, want=1)) for i in range(20)]
    await asyncio.sleep(0)
    for task in opens[::2]:
        task.cancel()

    await asyncio.wait_for(asyncio.gather(*opens, return_exceptions=True), 5)
    await ledger.audit()  # answered after all openings, whose grants are on their way back then

    assert all(task.result().leased == 1 for task in opens[1::2])
    assert await ledger.balance("alice", LIMIT) == Account(100_000, held=10)


async def test_balances_are_read_without_a_gateway_too(ledger, tmp_path):
    """The accounts can be listed during a run, after it, and before there are any."""
    await take(ledger, "r1", "root", Limit(UNLIMITED), want=5)
    during = read_balances(tmp_path)
    await ledger.close()

    assert during == [Balance("root", "tokens", "total", None, spent=0, held=5)]
    assert read_balances(tmp_path) == during
    assert read_balances(tmp_path / "nothing") == []


async def test_a_directory_that_somebody_has_for_a_moment_is_waited_for(tmp_path):
    """A command that corrects the books must not keep a gateway from starting; another gateway does."""
    first = SqliteLedger(tmp_path, time.time)
    later = asyncio.get_running_loop().run_in_executor(None, lambda: SqliteLedger(tmp_path, time.time, lock_s=5.0))
    await asyncio.sleep(0.1)
    await first.close()
    second = await later

    with pytest.raises(LedgerInUse):
        SqliteLedger(tmp_path, time.time, lock_s=0.1)
    await second.close()
