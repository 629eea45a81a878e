"""What operators ask while a gateway runs is bounded, in time and in number, and takes nothing from streams."""

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from gateway import desk as module
from gateway.books.keys import Keys
from gateway.desk import Desk
from gateway.http.admin_books import THREADS, WAITING_MAX, AdminBooks
from guards.refusal import Reason, Refused


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, lambda: Keys(tmp_path / "keys.db"), None, SimpleNamespace(running={}))


def journal(folder: Path, facts: int) -> None:
    common = {"kind": "request.settled", "user": "alice", "prompt_tokens": 1, "cost": 1}
    lines = [msgspec.json.encode({"seq": seq, "at": time.time(), **common}) for seq in range(1, facts + 1)]
    (folder / "journal.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def test_a_journal_that_takes_too_long_is_not_read_to_its_end(desk, tmp_path, monkeypatch):
    """Nor is any while the gateway ends: its threads would keep it."""
    journal(tmp_path, 1_000)
    assert desk.spend("user", 0.0)[0][0]["requests"] == 1_000

    monkeypatch.setattr(module, "SPEND_S_MAX", -1.0)
    with pytest.raises(TimeoutError, match="ask for less"):
        desk.spend("user", 0.0)
    monkeypatch.undo()
    desk.closing = True
    with pytest.raises(TimeoutError):
        desk.spend("user", 0.0)


def test_who_reads_a_journal_lets_others_have_the_interpreter(desk, tmp_path, monkeypatch):
    """The event loop would wait five milliseconds for it otherwise, at every turn."""
    journal(tmp_path, 1_000)
    naps = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=naps.append, monotonic=time.monotonic, time=time.time))

    desk.spend("user", 0.0)

    assert len(naps) == 1 + 999 // module.GENTLY + 1  # and one for the look for repricings


async def test_too_many_questions_are_told_to_come_again(desk):
    """Those that wait are answered; a client that leaves keeps its place until the work for it is done."""
    books, go = AdminBooks(desk, {}, lambda: None), threading.Event()
    asked = [asyncio.ensure_future(books._aside(go.wait)) for _ in range(WAITING_MAX)]
    await asyncio.sleep(0)
    asked[0].cancel()
    await asyncio.sleep(0)

    with pytest.raises(Refused) as refused:
        await books._aside(go.wait)
    go.set()
    answers = await asyncio.gather(*asked[THREADS:])  # by then those before them are done, too
    await asyncio.get_running_loop().run_in_executor(books._threads, int)

    assert (refused.value.reason, refused.value.retry_after_s) == (Reason.OVERLOADED, 1.0)
    assert all(answers)
    assert await books._aside(lambda: 7) == 7
    books.close()
    with pytest.raises(Refused, match="stopping"):
        await books._aside(lambda: 7)
