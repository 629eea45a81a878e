"""`holdfast pages`, as it is run beside engines that use the store, and without any."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import app
from tests.vllm_plugin.store.pages import PAGE_BYTES, all_right, key_of, page
from vllm_plugin.store import PageStore, open_store

ROOT = Path(__file__).parents[2]
RUNNER = CliRunner()


def run(*args: str, code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of `holdfast pages ...`, which must end with `code`."""
    result = RUNNER.invoke(app, ["pages", *args])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stdout, result.stderr


def process(*args: str) -> tuple[str, str]:
    """The same, by a process of its own, as it is beside an engine: in one process a store is opened once."""
    command = [sys.executable, "-m", "gateway", "pages", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.fixture
def place() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    yield path / "store"
    shutil.rmtree(path)


@pytest.fixture
def url(place: Path) -> str:
    return f"lmdb://{place}?size=16MiB"


@pytest.fixture
def engine(url: str) -> Iterator[PageStore]:
    """Whoever uses the store: «acme» has pages 1 and 2, and shares 2 with «[red]eve», who has 3."""
    store = open_store(url)
    store.put([page(1, "acme"), page(2, "acme"), page(3, "[red]eve")])
    store.put([page(2, "[red]eve")])
    yield store
    store.close()


@pytest.fixture
def left(engine: PageStore, url: str) -> str:
    """The address of the same store, which nobody uses any more."""
    engine.close()
    return url


def sessions(url: str) -> dict[str, int]:
    return {one["name"]: one["pages"] for one in json.loads(run("list", "--store", url, "--json")[0])}


def test_sessions_are_listed_with_what_they_use(engine: PageStore, url: str):
    """Who used them last first; a shared page counts for both, and a name is never markup."""
    told = json.loads(run("list", "--store", url, "--json")[0])
    assert [(one["name"], one["pages"], one["bytes"]) for one in told] == [
        ("[red]eve", 2, 2 * PAGE_BYTES),
        ("acme", 2, 2 * PAGE_BYTES),
    ]
    assert all(0 <= one["idle_s"] < 60 for one in told)

    table, _ = run("list", "--store", url)
    assert "[red]eve" in table
    assert "acme" in table


def test_what_is_in_it_is_counted(engine: PageStore, url: str):
    """Pages, sessions, bytes taken and to be had, for people and for scripts."""
    told = json.loads(run("stat", "--store", url, "--json")[0])
    assert (told["pages"], told["sessions"], told["size_bytes"], told["aside"]) == (3, 2, 16 * 2**20, "")
    assert 3 * PAGE_BYTES <= told["bytes"] < told["size_bytes"]

    assert ["pages", "3"] in [line.split() for line in run("stat", "--store", url)[0].splitlines()]


@pytest.mark.slow
def test_a_session_is_erased_under_a_running_engine(engine: PageStore, url: str):
    """All that it used, also what it shared; what only others used stays."""
    out, err = process("erase", "--session", "acme", "--store", url)

    assert (out, "erased 2 pages, 65,536 bytes" in err) == ("", True)
    assert all_right(engine, [1, 2, 3]) == [False, False, True]
    assert sessions(url) == {"[red]eve": 1}


def test_a_session_that_has_nothing_has_nothing_to_erase(left: str):
    """It is told, and is no error: whoever asks again has it done."""
    assert json.loads(run("erase", "--session", "nobody", "--store", left, "--json")[0]) == {
        "pages": 0, "bytes": 0, "files_removed": False,
    }  # fmt: skip
    assert sessions(left) == {"[red]eve": 2, "acme": 2}


@pytest.mark.slow
def test_all_is_erased_under_a_running_engine(engine: PageStore, url: str, place: Path):
    """The engine goes on with an empty store; the files stay, and that is said."""
    told, err = process("erase", "--all", "--store", url, "--json")

    assert json.loads(told) == {"pages": 3, "bytes": 3 * PAGE_BYTES, "files_removed": False}
    assert "engines use the store" in err
    assert engine.held([key_of(1)]) == 0
    assert engine.put([page(4)])
    assert (place / "data.mdb").exists()


def test_all_is_erased_with_its_files(left: str, place: Path):
    """Where nobody uses them nothing remains: from then on there is no store."""
    told, _ = run("erase", "--all", "--store", left, "--json")

    assert json.loads(told) == {"files_removed": True}
    assert not list(place.iterdir())
    assert "there are no pages in" in run("list", "--store", left, code=1)[1]


def test_looking_makes_nothing(url: str, place: Path):
    """No store: one line, status 1, and still no directory."""
    for words in (("list",), ("stat",), ("erase", "--session", "s"), ("erase", "--all")):
        out, err = run(*words, "--store", url, code=1)
        assert (out, err) == ("", f"there are no pages in {place}\n")
    assert not place.exists()


def test_a_wrong_address_says_what_to_write():
    """In one line."""
    for wrong in ("redis://localhost", "/dev/shm/holdfast", "lmdb://dev", "lmdb:///dev/shm/x?size=1GB&keep=1h"):
        out, err = run("list", "--store", wrong, code=1)
        assert out == ""
        assert err.startswith(wrong)
        assert err.count("\n") == 1
        assert any(what in err for what in ("lmdb://", "there are size, retention, queue", "key_file=/F"))


def test_what_to_erase_must_be_said(left: str):
    """Either a session or everything: neither and both are errors of usage, and erase nothing."""
    for words in ((), ("--all", "--session", "acme")):
        assert "--session" in run("erase", *words, "--store", left, code=2)[1]
    assert sessions(left) == {"[red]eve": 2, "acme": 2}


def test_its_files_are_for_nobody_else(left: str, place: Path):
    """Pages reveal prompts: 0700 and 0600 after whatever is asked; what others can read is refused with what to run."""
    run("stat", "--store", left)
    run("erase", "--session", "acme", "--store", left)
    assert place.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}

    (place / "data.mdb").chmod(0o644)
    for words in (("list",), ("erase", "--session", "acme")):
        assert f"chmod 600 {place}/data.mdb" in run(*words, "--store", left, code=1)[1]
