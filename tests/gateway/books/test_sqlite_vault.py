"""A vault in a file: many processes, deaths in mid-exchange, and files that are gone, held, damaged or too new."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from gateway.books.vault.contract import Closed, Exchange, VaultDown
from gateway.books.vault.sqlite import BATCH_MAX, BUSY_S_MAX, SqliteVault
from tests.processes import ROOT
from tests.vaults import ACME, TAG, Teller, claim

# A gateway that spends what it is given, one by one, and tells on its standard output what it was given in all.
SPENDER = """
import asyncio, json, sys, time
from pathlib import Path
from gateway.books.vault.sqlite import SqliteVault
from gateway.books.vault.contract import VaultDown
from tests.vaults import Teller, claim

async def main(data, name):
    vault = SqliteVault(Path(data), time.time)
    one, rights, failed = Teller(vault, name), 0, 0
    while True:
        try:
            answer = await one.says(claim(1_000_000, rights=rights, spent=rights, want=500, need=7))
        except VaultDown:
            failed += 1
            continue
        if answer.given[0].rights == rights:
            break
        rights = answer.given[0].rights
        print(json.dumps([rights, failed]), flush=True)
    await vault.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def vault(tmp_path):
    vault = SqliteVault(tmp_path, time.time)
    await vault.begin()
    yield vault
    await vault.close()


def spender(data: Path, name: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SPENDER, str(data), name], cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
async def test_processes_that_race_and_die_are_never_given_more_than_the_limit(tmp_path, vault):
    """Real ones; one is killed in the middle, and what it had stays its own. The others use up the rest."""
    dies, *live = processes = [spender(tmp_path, f"g{i}") for i in range(4)]
    told = [[process.stdout.readline()] for process in (dies, live[0]) if process.stdout is not None]
    dies.kill()
    has = [json.loads([*before, *process.communicate(timeout=60)[0].splitlines()][-1])
           for before, process in zip([*told, [], []], processes, strict=True)]  # fmt: skip

    (standing,) = await vault.standings(TAG)
    given = sum(rights for rights, _ in has)
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0, 0, 0]
    assert given <= standing.spent + standing.leased <= 1_000_000
    assert 1_000_000 - standing.spent - standing.leased < 7


async def test_exchanges_that_wait_share_a_transaction(vault):
    """And are answered in the order in which they were asked."""
    one = Teller(vault, "one")
    await one.says(claim())
    commits = vault.commits

    answers = await asyncio.gather(*(one.says(claim(rights=i)) for i in range(3 * BATCH_MAX)))

    assert vault.commits - commits <= 5
    assert [answer.given[0].rights for answer in answers] == list(range(3 * BATCH_MAX))


async def test_a_file_that_a_stranger_holds_is_down_in_time(tmp_path, vault):
    """And the event loop goes on meanwhile; when it is let go of, all is as before."""
    one = Teller(vault, "one")
    await one.says(claim(rights=5))
    turns = 0
    with closing(sqlite3.connect(tmp_path / "vault.sqlite3", isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        began_s = time.monotonic()
        asking = asyncio.create_task(one.says(claim(rights=6)))
        while not asking.done():
            await asyncio.sleep(0.01)
            turns += 1
        took_s = time.monotonic() - began_s
        stranger.execute("ROLLBACK")

    with pytest.raises(VaultDown, match="locked"):
        await asking
    assert BUSY_S_MAX * 0.8 < took_s < BUSY_S_MAX + 0.4
    assert turns > 10
    assert isinstance(await one.says(claim(rights=6)), Exchange)


async def test_a_file_that_was_removed_is_an_empty_vault(tmp_path, vault):
    """Not one that goes on unseen beside the one that others make anew."""
    one = Teller(vault, "one")
    await one.says(claim(rights=5))
    for path in tmp_path.glob("vault.sqlite3*"):
        path.unlink()

    with pytest.raises(VaultDown):
        await one.says(claim(rights=5), known=True)
    assert isinstance(await one.says(claim(rights=5), known=True), Closed)


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"new"])
async def test_a_file_that_cannot_be_used_is_down_by_its_name(tmp_path, content):
    """Damaged, or made by a later version."""
    if content == b"new":
        with closing(sqlite3.connect(tmp_path / "vault.sqlite3")) as db:
            db.execute("PRAGMA user_version = 99")
    else:
        (tmp_path / "vault.sqlite3").write_bytes(content)
    vault = SqliteVault(tmp_path, time.time)

    with pytest.raises(VaultDown, match=r"vault\.sqlite3 cannot be used"):
        await vault.begin()
    await vault.close()


async def test_what_was_answered_is_on_disk(tmp_path, vault):
    """Another process has it, whatever became of this one; and nobody is answered after the end."""
    await Teller(vault, "one").says(claim(need=5))
    other = SqliteVault(tmp_path, time.time)

    assert [(one.place, one.leased) for one in await other.standings(TAG)] == [(ACME, 5)]
    with closing(sqlite3.connect(tmp_path / "vault.sqlite3")) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert other._db is not None
    assert other._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    await other.close()
    with pytest.raises(VaultDown):
        await other.tags()


async def test_a_caller_that_leaves_has_been_heard(vault):
    """Its answer is lost, as on any way; its number is not free again."""
    one = Teller(vault, "one")
    leaving = asyncio.create_task(one.says(claim(need=5)))
    await asyncio.sleep(0)
    leaving.cancel()

    (standing,) = await vault.standings(TAG)

    assert standing.leased == 5
    assert (await one.says(claim())).given[0].free == 1_000
