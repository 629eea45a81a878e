"""Books that cannot be written: nothing new begins, what runs goes on within its lease, nothing is lost, and all of it
works again without a restart once it can. By a real limit on file sizes, on real small disks, under real locks."""

import asyncio
import json
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.books.ledger.tables import ledger_file
from loadtests.processes import StubProcess
from tests.crowd import Numbers, audit
from tests.loadtests import raw_client
from tests.loadtests.raw_client import Seen
from tests.processes import HOLDFAST, ROOT, until
from tests.processes import ForkedGateway as Gateway
from tests.scenarios.asking import ask, chat, error, header, order, plain, prompt_tokens, request_id

pytestmark = pytest.mark.slow

WAIT_S = 60.0
DISK_BYTES = 1 << 20
LONG_TOKENS = 2500  # about a thousand more than a first lease
LINES_MAX = 12  # of log for one outage, whoever retries how often


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Answers take as long as the disk does."""
    monkeypatch.setattr(raw_client, "READ_S_MAX", WAIT_S)


def file_size_limit(gateway: Gateway, size_bytes: int) -> None:
    """No file of that process grows, or is written to, beyond so many bytes; its log neither."""
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def ready(gateway: Gateway) -> tuple[bool, list[str]]:
    said = json.loads(gateway.get("/readyz")[1])
    return said["ready"], said["why"]


def refused(seen: Seen) -> tuple[int, str, bool]:
    return seen.status, error(seen)["code"], header(seen, "retry-after") is not None


BOOKS_REFUSE = (503, "books_unavailable", True)


async def refusing(gateway: Gateway, key: str) -> Seen:
    """Ask until it is refused, which is once the books have noticed."""
    for _ in range(200):
        seen = await ask(gateway, key, plain(order(tokens=3)))
        if seen.status != 200:
            return seen
    raise AssertionError("a gateway with broken books goes on taking requests")


class Outage:
    """Streams that run into broken books, and what must be so after them."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.key = gateway.key("caught", 100_000)
        # One that ends during the outage, one after it, and one that by then needs more than it has leased.
        pace = [(120, 100, 1), (500, 120, 1), (LONG_TOKENS, 1000, 4)]
        self.bodies = [chat(order(tokens=t, tokens_per_s=per_s, per_chunk=chunk)) for t, per_s, chunk in pace]

    async def begin(self) -> None:
        self.running = [asyncio.create_task(ask(self.gateway, self.key, body)) for body in self.bodies]
        await asyncio.to_thread(until, lambda: self.gateway.metric("holdfast_holds") == 3)

    async def end(self) -> None:
        """The books can be written again: everything comes right by itself."""
        answers = await asyncio.gather(*self.running)
        await asyncio.to_thread(until, lambda: ready(self.gateway)[0], WAIT_S)
        again = await ask(self.gateway, self.key, plain(order(tokens=3)))
        await asyncio.to_thread(until, lambda: self.gateway.balance(self.key).held == 0, WAIT_S)

        assert [(seen.status, seen.done, len(seen.ids)) for seen in answers] == [
            (200, True, 120),
            (200, True, 500),
            (200, True, LONG_TOKENS),
        ]
        assert again.status == 200
        for seen in [*answers, again]:
            assert self.gateway.settled(request_id(seen))["ending"] == "finished"
        facts = self.gateway.settlements(self.key)
        served = sum(fact["charged_tokens"] for fact in facts)
        assert self.gateway.balance(self.key).spent == served
        assert served >= sum(map(prompt_tokens, self.bodies)) + 120 + 500 + LONG_TOKENS
        assert "journal.gap" not in [fact["kind"] for fact in self.gateway.journal()]
        assert Numbers(self.gateway.data / "journal.jsonl").holes() == []
        assert audit(self.gateway.data) == []


async def test_files_that_may_not_grow(start_gateway, house):
    """With not one byte to write, for ledger, journal and log: 503 for new work, and a stream waits for its lease."""
    gateway: Gateway = start_gateway([house.active.url])
    outage = Outage(gateway)
    await outage.begin()

    file_size_limit(gateway, 1)
    seen = await refusing(gateway, outage.key)
    await asyncio.to_thread(until, lambda: len(ready(gateway)[1]) == 2, WAIT_S)
    why = ready(gateway)
    await asyncio.sleep(1.5)
    models = gateway.get("/health")[0], gateway.get("/metrics", gateway.admin_url)[0]
    file_size_limit(gateway, resource.RLIM_INFINITY)

    assert refused(seen) == BOOKS_REFUSE
    assert why == (False, ["the journal cannot be written", "the ledger cannot be written"])
    assert models == (200, 200)
    await outage.end()


async def test_a_stream_ends_within_its_lease_when_the_ledger_stays_broken(start_gateway, house):
    """After a while a stream that needs more ends with an error of the books, never one of the budget."""
    gateway: Gateway = start_gateway([house.active.url])
    body, key = chat(order(tokens=3000, tokens_per_s=300)), gateway.key("stuck", 100_000)
    running = asyncio.create_task(ask(gateway, key, body))
    await asyncio.to_thread(until, lambda: gateway.metric("holdfast_holds") == 1)
    await asyncio.sleep(0.3)

    file_size_limit(gateway, 1)
    seen = await running
    leased = gateway.balance(key).held
    file_size_limit(gateway, resource.RLIM_INFINITY)
    await asyncio.to_thread(until, lambda: gateway.balance(key).held == 0, WAIT_S)

    assert error(seen)["code"] == "books_unavailable"
    assert not seen.done
    assert 0 < prompt_tokens(body) + len(seen.ids) <= leased
    assert gateway.balance(key).spent == prompt_tokens(body) + len(seen.ids)
    assert gateway.settled(request_id(seen))["ending"] == "books_unavailable"


# ---------------------------------------------------------------- real small disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte; mounting one takes root."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "holdfast-test", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root; the limit on file sizes is tested all the same")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave not one byte."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return filler


@pytest.mark.parametrize("what", ["everything", "journal.jsonl"])
async def test_a_full_disk(small_disk, tmp_path, house, what):
    """The disk of all the books, or of the journal alone, is full to the last byte, then has room again."""
    folder = tmp_path / "gateway"
    folder.mkdir()
    if what == "everything":
        (folder / "data").symlink_to(small_disk)
    else:
        (folder / "data").mkdir()
        (folder / "data" / what).symlink_to(small_disk / what)
    with Gateway(folder, [house.active.url]) as gateway:
        outage = Outage(gateway)
        await outage.begin()
        lines = gateway.log().count("\n")

        filler = fill(small_disk)
        seen = await refusing(gateway, outage.key)
        answers = []
        while len(answers) < 20 or "the journal cannot be written" not in ready(gateway)[1]:  # its last page has room
            answers.append(await ask(gateway, outage.key, plain(order(tokens=3))))
            assert len(answers) < 200
        await asyncio.sleep(1.5)
        said = [line for line in gateway.log().splitlines()[lines:] if "books_unavailable" not in line]
        filler.unlink()

        assert {refused(one) for one in [seen, *answers]} == {BOOKS_REFUSE}
        assert len([line for line in said if '"request.settled"' not in line]) <= LINES_MAX, said
        await outage.end()
        assert gateway.stop() == 0
        assert gateway.faults() == []


def test_a_read_only_disk_at_the_start(small_disk, tmp_path, house):
    """A data directory that cannot be written is one line that says so, and no gateway."""
    (tmp_path / "data").symlink_to(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    status, said = start(tmp_path, house.active)

    assert status == 1
    assert "Read-only file system" in said
    assert str(tmp_path / "data") in said
    assert "Traceback" not in said


# ---------------------------------------------------------------- files that are gone, locked or damaged


async def test_a_data_directory_that_is_moved_away_and_back(start_gateway, house):
    """While it is gone nothing new begins, and it is not made anew; once it is back, it is used again."""
    gateway: Gateway = start_gateway([house.active.url])
    outage = Outage(gateway)
    await outage.begin()
    away = gateway.data.with_name("away")

    gateway.data.rename(away)
    seen = await refusing(gateway, outage.key)
    why = ready(gateway)[1]
    gone = not gateway.data.exists()
    await asyncio.sleep(1.5)
    away.rename(gateway.data)

    assert refused(seen) == BOOKS_REFUSE
    assert "the ledger cannot be written" in why
    assert gone
    await outage.end()


async def test_a_data_directory_that_is_removed(start_gateway, house):
    """Its streams come to their ends, nothing new begins, and SIGTERM still ends the gateway in order."""
    gateway: Gateway = start_gateway([house.active.url])
    key = gateway.key("bereft", 100_000)
    running = asyncio.create_task(ask(gateway, key, chat(order(tokens=90, tokens_per_s=60))))
    await asyncio.to_thread(until, lambda: gateway.metric("holdfast_holds") == 1)

    shutil.rmtree(gateway.data)
    seen = await refusing(gateway, key)
    stream = await running
    status = await asyncio.to_thread(gateway.stop)

    assert refused(seen) == BOOKS_REFUSE
    assert (stream.done, len(stream.ids)) == (True, 90)
    assert status == 0
    assert not gateway.data.exists()


async def test_a_ledger_that_another_process_has_locked(start_gateway, house):
    """While a stranger holds the lock requests are refused soon and the log stays short; then all is well."""
    gateway: Gateway = start_gateway([house.active.url])
    outage = Outage(gateway)
    await outage.begin()
    stranger = sqlite3.connect(ledger_file(gateway.data), timeout=WAIT_S, isolation_level=None)
    lines = gateway.log().count("\n")

    stranger.execute("BEGIN IMMEDIATE")
    answers = await asyncio.gather(*(ask(gateway, outage.key, plain(order(tokens=3))) for _ in range(20)))
    why = ready(gateway)
    said = [line for line in gateway.log().splitlines()[lines:] if "books_unavailable" not in line]
    stranger.execute("ROLLBACK")
    stranger.close()

    assert {refused(one) for one in answers} == {BOOKS_REFUSE}
    assert why == (False, ["the ledger cannot be written"])
    assert len([line for line in said if '"request.settled"' not in line]) <= LINES_MAX, said
    await outage.end()


def test_keys_that_cannot_be_made(start_gateway, house):
    """A key that cannot be stored is an error line that names the file and no key; requests go on."""
    gateway: Gateway = start_gateway([house.active.url])
    key = gateway.key("before", 1000)

    made = subprocess.run(
        [str(HOLDFAST), "keys", "create", "--user=late", "--data", str(gateway.data)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1)),
    )
    seen = asyncio.run(ask(gateway, key, plain(order(tokens=3))))

    assert (made.returncode, made.stdout) == (1, "")
    assert "Traceback" not in made.stderr
    assert str(gateway.data / "keys.db") in made.stderr
    assert seen.status == 200
    assert len(gateway.cli("keys", "list", "--json").split("key_id")) == 2


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage\n" * 1024)


def a_directory(path: Path) -> None:
    path.mkdir()


DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a ledger of garbage": ("ledger.sqlite3", garbage),
    "a ledger that is a directory": ("ledger.sqlite3", a_directory),
    "keys of garbage": ("keys.db", garbage),
    "keys that are a directory": ("keys.db", a_directory),
    "a journal that is a directory": ("journal.jsonl", a_directory),
    "a salt that is too short": ("salt.key", lambda path: path.write_bytes(b"short") and None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_at_the_start_is_one_line(tmp_path, house, name):
    """A file that cannot be used is named, in a line, with exit status 1; nothing of it is overwritten."""
    file, damage = DAMAGE[name]
    (tmp_path / "data").mkdir()
    damage(tmp_path / "data" / file)
    before = (tmp_path / "data" / file).is_dir() or (tmp_path / "data" / file).read_bytes()

    status, said = start(tmp_path, house.active)

    assert status == 1
    assert str(tmp_path / "data" / file) in said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if not line.startswith("{")]) == 1, said
    assert before == ((tmp_path / "data" / file).is_dir() or (tmp_path / "data" / file).read_bytes())


def start(folder: Path, stub: StubProcess) -> tuple[int, str]:
    """(exit status, log) of a gateway that does not come up."""
    with Gateway(folder, [stub.url], wait=False) as gateway:
        return gateway.process.wait(WAIT_S), gateway.log()
