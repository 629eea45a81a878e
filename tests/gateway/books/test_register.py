"""Who a gateway is to the vault, and what it is to tell: many leases write of it at a time."""

import asyncio
import sqlite3

import pytest
from structlog.testing import capture_logs

from gateway.books.ledger.contract import Place
from gateway.books.ledger.register import Entry, Register
from guards.refusal import Reason, Refused


def entry(number: int) -> Entry:
    return Entry(Place(f"org:{number}", "tokens", "total"), f"org:{number}", 100, 0.0)


async def test_what_many_leases_note_at_once_is_kept(tmp_path):
    """Written together, and on disk when they are answered."""
    register = Register(tmp_path)

    await asyncio.gather(*(register.note([entry(number)]) for number in range(200)), register.know("org:1"))
    kept = Register(tmp_path)

    assert set(kept.entries()) == set(map(entry, range(200)))
    assert kept.tags == register.tags == {"org:1"}
    await asyncio.gather(*(register.forget([entry(number).place], f"org:{number}") for number in range(200)))
    assert (kept.entries(), register.tags) == ([], set())
    await register.close()
    await kept.close()


async def test_what_cannot_be_written_is_refused_and_logged_once(tmp_path):
    """To all that wait for it, until it can be again."""
    register = Register(tmp_path)
    stranger = sqlite3.connect(tmp_path / "rights.sqlite3", isolation_level=None)
    stranger.execute("ALTER TABLE accounts RENAME TO gone")
    with capture_logs() as logs:
        refused = await asyncio.gather(*(register.note([entry(n)]) for n in range(3)), return_exceptions=True)
        with pytest.raises(Refused):
            await register.note([entry(3)])
    stranger.execute("ALTER TABLE gone RENAME TO accounts")
    await register.note([entry(4)])

    assert [one.reason for one in refused] == [Reason.BOOKS] * 3
    assert [one["event"] for one in logs] == ["register.failed"]
    assert register.entries() == [entry(4)]
    stranger.close()
    await register.close()


async def test_each_start_has_an_epoch_and_a_name_of_its_own(tmp_path):
    """The gateway's name is for good; its exchanges are numbered from start to start."""
    first, second = Register(tmp_path), Register(tmp_path)
    one, other = first.me(), second.me()

    assert (one.name, one.epoch + 1, one.number) == (other.name, other.epoch, other.number)
    assert len({one.start, other.start, ""}) == 3
    assert first.me().start == one.start
    await first.close()
    await second.close()
