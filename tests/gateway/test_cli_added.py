"""Commands that are not the gateway's own: there when asked for, and in nobody's way."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gateway import cli_added
from gateway.cli import app

ROOT = Path(__file__).parents[2]
RUNNER = CliRunner()
Add = Callable[[str, str], None]


def run(*args: str, code: int = 0) -> str:
    """What a command says on both streams; it must end with `code`, and never with a traceback."""
    result = RUNNER.invoke(app, list(args))
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


def modules_of(*args: str) -> set[str]:
    """What a process that ran this command had imported in the end."""
    code = (
        "import sys, contextlib; from gateway.cli import app\n"
        "with contextlib.suppress(SystemExit): app(sys.argv[1:])\n"
        "print('IMPORTED', *sys.modules)"
    )
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("IMPORTED")[2].split())


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Adds a command, as an entry point of the distribution would."""
    there: dict[str, EntryPoint] = {}
    monkeypatch.setattr(cli_added, "added", lambda: there)

    def one(name: str, value: str) -> None:
        there[name] = EntryPoint(name, value, cli_added.GROUP)

    return one


hello_app = typer.Typer(help="Says hello.")
hello_app.command("world")(lambda: typer.echo("hello"))
hello_app.command("moon")(lambda: typer.echo("good night"))


def test_an_added_command_runs_and_is_listed(add: Add):
    """By the name of its entry point, with its own commands and help."""
    add("greet", f"{__name__}:hello_app")

    assert run("greet", "world") == "hello\n"
    assert "greet" in run("--help")
    assert "Says hello." in run("--help")
    assert "moon" in run("greet", "--help")


def test_a_command_that_lacks_something_says_what_to_install(add: Add):
    """In one line, whatever is asked of it; and the list of all commands is there nevertheless."""
    add("lacking", "holdfast_is_not_there:app")

    for words in ((), ("--help",), ("list", "--store", "x", "y")):
        said = run("lacking", *words, code=1)
        assert "holdfast lacking: No module named 'holdfast_is_not_there'" in said
        assert "pip install '.[plugin]'" in said
        assert said.count("\n") == 1
    assert "comes with the extra «plugin»" in run("--help")


def test_the_gateways_own_commands_stay_its_own(add: Add):
    """Whatever is added."""
    add("version", "holdfast_is_not_there:app")

    assert "holdfast_is_not_there" not in run("version")
    assert run("--help").count("Print the version.") == 1


def test_what_does_not_exist_is_refused_as_ever(add: Add):
    """A wrong name is an error of usage."""
    add("greet", f"{__name__}:hello_app")

    assert "No such command" in run("greeet", code=2)


def test_a_source_tree_that_is_not_installed_adds_nothing(monkeypatch: pytest.MonkeyPatch):
    """The gateway's commands work there too."""
    monkeypatch.setattr(cli_added, "distribution", lambda name: (_ for _ in ()).throw(cli_added.PackageNotFoundError))

    assert cli_added.added() == {}


def test_pages_are_added_by_this_distribution():
    """As pyproject.toml says."""
    assert cli_added.added()["pages"].value == "vllm_plugin.store.commands:pages_app"
    assert "pages" in run("--help")


def test_load_and_bench_are_added_by_this_distribution():
    """As pyproject.toml says."""
    assert cli_added.added()["load"].value == "loadtests.traffic.commands:load_app"
    assert "realistic LLM traffic" in run("load", "--help")
    assert "compare" in run("bench", "--help")


@pytest.mark.slow
def test_whoever_runs_another_command_waits_for_nothing():
    """No other command imports what was added, and the list of all of them does not import lmdb."""
    assert not {name for name in modules_of("version") if name.startswith(("vllm_plugin", "lmdb"))}
    assert "vllm_plugin.store.commands" in (listed := modules_of("--help"))
    assert not {"lmdb", "locust", "gevent"} & listed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "missing", "extra"), [(["pages", "list"], "lmdb", "plugin"), (["load", "chat"], "locust", "loadtest")]
)
def test_what_is_missing_is_said_with_what_to_install(words: list[str], missing: str, extra: str):
    """Where only the gateway is installed: one line, and status 1."""
    code = f"import sys; sys.modules[{missing!r}] = None; from gateway.cli import main; main()"
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 1
    assert f"pip install '.[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1
