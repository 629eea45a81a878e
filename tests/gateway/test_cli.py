"""The command line: what goes to which stream, and that expected errors are lines, not tracebacks."""

import json
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.books.ledger.tables import LedgerInUse, connect
from gateway.cli import app
from gateway.config import Config
from guards.budget import Window

ROOT = Path(__file__).parents[2]
RUNNER = CliRunner()
VALID = "models: [{name: m, replicas: [{url: 'http://127.0.0.1:8001'}]}]\n"


def run(*args: str, code: int = 0) -> tuple[str, str]:
    """(stdout, stderr) of a command that must end with `code`."""
    result = RUNNER.invoke(app, list(args))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def process(cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from gateway.cli import main; main()", *args]
    return subprocess.run(command, cwd=cwd, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "d")


@pytest.mark.slow
def test_a_new_key_is_alone_on_stdout(tmp_path: Path):
    """A real process prints the key and nothing else on stdout, in a private default directory."""
    done = process(tmp_path, "keys", "create", "--user", "alice", "--tokens", "100k/day")

    assert done.returncode == 0
    assert done.stdout.startswith("hf-")
    assert done.stdout.count("\n") == 1
    assert len(done.stdout.strip()) == 46
    assert "shown once, keep it" in done.stderr
    assert done.stdout.strip() not in done.stderr
    assert (tmp_path / "holdfast-data").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_key_commands_do_not_import_the_gateway():
    """`holdfast keys list` starts without aiohttp, uvloop and tokenizers."""
    code = (
        "import sys, contextlib; from gateway.cli import app\n"
        "with contextlib.suppress(SystemExit): app(['keys', 'list'])\n"
        "print(sorted({'aiohttp', 'uvloop', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_key_life(data: str):
    """A key is made, listed with its budget, revoked, and listed as revoked; the list never holds it."""
    given = ("--user", "alice", "--org", "acme", "--tokens", "100000/day")
    out, _ = run("keys", "create", *given, "--data", data, "--json")
    made = json.loads(out)
    assert made["key"].startswith("hf-")
    assert (made["user"], made["org"]) == ("alice", "acme")
    assert made["limits"] == [{"unit": "tokens", "amount": 100_000, "window": "day"}]

    table, _ = run("keys", "list", "--data", data)
    assert made["key_id"] in table
    assert "100,000" in table
    assert made["key"] not in table

    out, err = run("keys", "revoke", made["key_id"], "--data", data)
    assert (out, err) == ("", f"{made['key_id']} revoked\n")
    [row] = json.loads(run("keys", "list", "--data", data, "--json")[0])
    assert (row["state"], row["budgets"][0]["free"]) == ("revoked", 100_000)


def test_balances_are_those_of_the_present_window(data: str):
    """Spent, held and free come from the ledger's account of the window we are in."""
    made = json.loads(run("keys", "create", "--user", "a", "--tokens", "100/month", "--data", data, "--json")[0])
    db = connect(Path(data))
    for window, spent in ((Window.MONTH.id_at(time.time()), 30), ("1999-01", 99)):
        db.execute(
            "INSERT INTO accounts VALUES (?, 'tokens', ?, 100, ?, 20, 0)", (f"key:{made['key_id']}", window, spent)
        )
    db.close()

    [row] = json.loads(run("keys", "list", "--data", data, "--json")[0])

    [budget] = row["budgets"]
    assert [budget[name] for name in ("amount", "spent", "held", "free")] == [100, 30, 20, 50]


def test_names_are_not_markup(data: str):
    """A user named like rich markup is shown as written."""
    run("keys", "create", "--user", "[red]eve", "--data", data)

    assert "[red]eve" in run("keys", "list", "--data", data)[0]


def test_looking_makes_nothing(tmp_path: Path):
    """Listing and revoking in a directory without keys leaves it as it was."""
    data = str(tmp_path / "none")

    assert run("keys", "list", "--data", data, "--json") == ("[]\n", f"no keys in {data}\n")
    assert run("keys", "revoke", "key_1", "--data", data, code=1) == ("", f"no keys in {data}\n")
    assert not (tmp_path / "none").exists()


def test_revoke_of_what_is_not_there(data: str):
    """An unknown key id is one line and status 1."""
    run("keys", "create", "--user", "a", "--data", data)

    assert run("keys", "revoke", "key_1", "--data", data, code=1) == ("", "no such key: key_1\n")


def test_declared_keys_are_listed_and_not_revoked(tmp_path: Path):
    """With --config the file's keys are shown, in the file's data directory, and named as the file's."""
    file = tmp_path / "holdfast.yaml"
    file.write_text(VALID + "data: here\nkeys: [{user: carol, sha256: " + "ab" * 32 + "}]\n")

    [row] = json.loads(run("keys", "list", "--config", str(file), "--json")[0])
    _, err = run("keys", "revoke", row["key_id"], "--config", str(file), code=1)

    assert (row["state"], row["user"], row["key_id"]) == ("declared", "carol", "key_" + "ab" * 6)
    assert err == f"{row['key_id']} is declared in the configuration: remove it there\n"
    assert (tmp_path / "here" / "keys.db").exists()


def test_bad_budget_is_a_usage_error(data: str):
    """A budget that cannot be read says what to write."""
    _, err = run("keys", "create", "--user", "a", "--tokens", "5/dya", "--data", data, code=2)

    assert 'Did you mean "day"?' in err


def test_broken_store_is_one_line(tmp_path: Path):
    """A keys.db that is no database is an error line that names it."""
    (tmp_path / "keys.db").write_bytes(b"x" * 4096)

    _, err = run("keys", "list", "--data", str(tmp_path), code=1)

    assert err == f"the key store {tmp_path / 'keys.db'} cannot be used: file is not a database\n"


def test_check(tmp_path: Path):
    """A valid file gets a summary and 0; a wrong one all its errors on stderr and 1."""
    file = tmp_path / "h.yaml"
    file.write_text(VALID)
    assert run("check", str(file)) == (f"{file}: ok (models: 1, replicas: 1, keys: 0)\n", "")

    file.write_text(VALID + "kezs: 1\nlistne: 2\n")
    out, err = run("check", str(file), code=1)
    assert out == ""
    assert err.splitlines() == [
        f'{file}:2:1: kezs: unknown field. Did you mean "keys"?',
        f'{file}:3:1: listne: unknown field. Did you mean "listen"?',
    ]

    report = json.loads(run("check", str(file), "--json", code=1)[0])
    assert not report["ok"]
    assert [(error["line"], error["field"]) for error in report["errors"]] == [(2, "kezs"), (3, "listne")]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Stand in for the gateway: configurations that were run."""
    configs: list[Config] = []
    monkeypatch.setitem(sys.modules, "gateway.app", types.SimpleNamespace(run=configs.append))
    monkeypatch.setattr("gateway.watch.logs.set_up", lambda: None)
    return configs


def test_serve_upstreams(served: list[Config], data: str, monkeypatch: pytest.MonkeyPatch):
    """Without a file, servers are named on the command line, and their key by the environment."""
    monkeypatch.setenv("HOLDFAST_UPSTREAM_KEY", "sesame")

    upstreams = ("--upstream", "http://10.0.0.1:8000", "--upstream", "http://10.0.0.2:8000")

    run("serve", *upstreams, "--data", data, "--port", "0")

    [config] = served
    assert [replica.url for replica in config.upstreams] == ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
    assert not any("10.0.0" in replica.name for replica in config.upstreams)  # clients see the name
    assert config.upstreams[0].key is not None
    assert (config.listen.port, str(config.data)) == (0, data)
    assert Path(data).stat().st_mode & 0o777 == 0o700


def test_serve_file_with_overrides(served: list[Config], tmp_path: Path):
    """--port and --admin-port win over the file."""
    file = tmp_path / "h.yaml"
    file.write_text(VALID + "listen: {host: 127.0.0.2}\n")

    run("serve", "--config", str(file), "--port", "1", "--admin-port", "2")

    assert (served[0].listen.host, served[0].listen.port, served[0].listen.admin_port) == ("127.0.0.2", 1, 2)


def test_serve_needs_one_source(tmp_path: Path):
    """Neither or both of --config and --upstream is a usage error, which says so."""
    for given in ((), ("--config", "x", "--upstream", "http://localhost:1")):
        assert "give either --config FILE or --upstream URL" in run("serve", *given, code=2)[1]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(98, "address already in use"), "address already in use\n"),
        (LedgerInUse(Path("d")), f"{LedgerInUse(Path('d'))}\n"),
    ],
)
def test_expected_failures_are_one_line(
    served: list[Config], data: str, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
):
    """A port in use and a ledger in use end with one line each."""

    def run_gateway(config: Config) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "gateway.app", types.SimpleNamespace(run=run_gateway))

    assert run("serve", "--upstream", "http://localhost:1", "--data", data, code=1) == ("", line)


def test_bad_upstream_is_one_line(served: list[Config]):
    """A wrong URL on the command line is an error line, and nothing is started."""
    _, err = run("serve", "--upstream", "localhost:8000", code=1)

    assert err.startswith("command line: upstreams[0].url: must start with http://")
    assert served == []
