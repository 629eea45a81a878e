"""What is built from this tree holds what it needs, and runs where nothing but its dependencies is.

`make package` does it with the package index too: scripts/package.py.
"""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from loadtests.gameday.registry import all_scenarios
from loadtests.processes import start_stub
from tests.processes import Gateway
from tests.readme import ROOT

pytestmark = pytest.mark.slow

BASE = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"  # it has pip
STEP_S_MAX = 300.0
EXAMPLE = {"UPSTREAM_KEY": "sesame", "ALICE_SHA256": "0" * 64}  # that docs/holdfast.example.yaml asks for
PACKAGES = ("gateway", "guards", "vllm_plugin")
CODE = """
import gateway, guards, vllm_plugin, importlib.metadata as m
print(*(one.__file__ for one in (gateway, guards, vllm_plugin)), sep="\\n")
"""


def run(*command: str | Path, cwd: Path = ROOT, **more: str) -> str:
    """What it says; without the folders of this tree on its path. more: of its environment."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")} | more
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=STEP_S_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sdist and wheel, made anew, and not where `make package` puts them."""
    folder = tmp_path_factory.mktemp("built") / "dist"
    run(BASE, "scripts/package.py", "build", HOLDFAST_DIST=str(folder))
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, which sees this one's packages behind it."""
    path = tmp_path_factory.mktemp("installed") / "env"
    run(BASE, "-m", "venv", "--without-pip", path)
    (wheel,) = dist.glob("*.whl")
    pip = (BASE, "-m", "pip", "--python", path / "bin" / "python")
    run(*pip, "install", "--no-deps", "--no-index", "--no-input", "--quiet", wheel)
    (site,) = path.glob("lib/python*/site-packages")
    (theirs,) = Path(sys.prefix).glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{theirs}\n")
    return path


def sources(suffix: str) -> set[str]:
    """The files here that are shipped: those of the packages, and of loadtests what users run."""
    folders = (*PACKAGES, "loadtests/traffic", "loadtests/gameday")
    found = [path for name in folders for path in (ROOT / name).rglob(f"*{suffix}")]
    return {str(path.relative_to(ROOT)) for path in (*found, *(ROOT / "loadtests").glob(f"*{suffix}"))}


def test_the_wheel_has_all_of_the_packages_and_nothing_else(dist: Path):
    """Modules, Lua scripts, markers of types; the load tests that users run; no test, no bench, no data."""
    (file,) = dist.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))

    assert names == sources(".py") | sources(".lua") | {f"{name}/py.typed" for name in PACKAGES}
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [re.sub(r"\s", "", one) for one in said["dependencies"]]
    required = [re.split(r"[<>=;]", one)[0] for one in re.findall(r"^Requires-Dist: (\S+)$", metadata, re.MULTILINE)]
    assert required == [re.split(r"[<>=]", one)[0] for one in wanted]
    assert not {"vllm", "torch", "numpy"} & set(required)
    plugin = re.findall(r'^Requires-Dist: ([A-Za-z0-9_.-]+)\S*; extra == "plugin"$', metadata, re.MULTILINE)
    assert sorted(plugin) == ["blake3", "lmdb", "structlog"]
    assert f"Version: {said['version']}\n" in metadata
    assert "Classifier: Typing :: Typed\n" in metadata


def test_the_sdist_has_what_an_image_and_the_documents_need(dist: Path):
    """The wheel was made from it, so its packages are whole; beside them what README and Dockerfile name."""
    (file,) = dist.glob("*.tar.gz")
    with tarfile.open(file) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}

    wanted = {"Dockerfile", ".dockerignore", "compose.yaml", "README.md", "CHANGELOG.md", "ARCHITECTURE.md"}
    for folder, pattern in (("deploy", "*"), ("requirements", "*.txt"), ("docs", "*.md"), ("docs", "*.yaml")):
        wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / folder).glob(pattern)}
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tests/", "loadtests/bench/", ".venv", ".cache", ".git/"))]


def test_what_is_installed_is_the_wheel_and_whole(installed: Path, tmp_path: Path):
    """Its modules come from the environment, pip misses nothing, and the commands work anywhere."""
    files = run(installed / "bin" / "python", "-c", CODE, cwd=tmp_path).split()
    version = run(installed / "bin" / "holdfast", "version", cwd=tmp_path).strip()
    example = ROOT / "docs" / "holdfast.example.yaml"
    checked = run(installed / "bin" / "holdfast", "check", example, cwd=tmp_path, **EXAMPLE)
    missed = run(BASE, "-m", "pip", "--python", installed / "bin" / "python", "check", cwd=tmp_path)

    assert all(Path(file).is_relative_to(installed) for file in files)
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert ": ok (" in checked
    assert "No broken requirements found" in missed


def test_what_is_installed_has_its_game_days(installed: Path, tmp_path: Path):
    """All scenarios are there, and with them whatever they import."""
    told = run(installed / "bin" / "holdfast", "gameday", "--list", cwd=tmp_path)

    assert [line.split()[0] for line in told.splitlines()] == list(all_scenarios())


def test_what_is_installed_serves(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The console script runs a gateway, and SIGTERM ends it in order."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = (str(installed / "bin" / "holdfast"),)
    with start_stub() as stub, Gateway(tmp_path, [stub.url], command=command) as gateway:
        status, _ = gateway.get("/readyz")
        assert gateway.stop() == 0

    assert status == 200
