"""Other generators of load, as they are, against the gateway in front of the stub: the commands of docs/load.md.

They are installed by `python3 scripts/install.py generators`, each into an environment of its own.
"""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections import Counter
from importlib.metadata import distributions
from typing import Any

from gateway.local.engine import tiny_model
from loadtests.processes import start_stub
from tests.processes import ROOT, Gateway
from tests.prove.state import STATE, keep, provenance, results, say

NAME = "generators"
DOCUMENT = ROOT / "docs" / "load.md"
HEADING = "\n## Other generators of load\n"
ENVIRONMENTS = ROOT / ".cache" / "generators"
NAMES = ("aiperf", "guidellm")
COUNTS = {"aiperf": r"--request-count (\d+)", "guidellm": r"max_requests,count=(\d+)"}  # of requests
TOKENS = {"aiperf": r"--osl (\d+)", "guidellm": r"output_tokens=(\d+)"}  # of each answer
RUN_S_MAX = 600.0
TOKENS_PER_S = 100
SAID_MAX = 2000  # characters of a log


def run() -> None:
    """Each of them once, with a key, a stub and a gateway of its own. Raises RuntimeError where one is missing."""
    if NAME in results():
        return
    done: dict[str, Any] = {"on": provenance()}
    for name in NAMES:
        say(f"{name}, as {DOCUMENT.relative_to(ROOT)} has it")
        done[name] = once(name)
        say(f"{name}: {done[name]}")
    if missing := [done[name]["missing"] for name in NAMES if "missing" in done[name]]:
        raise RuntimeError("; ".join(missing))
    keep(NAME, done)


def once(name: str) -> dict[str, Any]:
    """What the gateway's journal has of a generator's requests, and how the generator ended."""
    program = ENVIRONMENTS / name / "bin" / name
    if not program.exists():
        return {"missing": f"{program}: python3 scripts/install.py generators"}
    folder = STATE / f"{NAME}-{time.time_ns()}"
    folder.mkdir(parents=True)
    try:
        with start_stub(tokens_per_s=TOKENS_PER_S) as stub, Gateway(folder, [stub.url]) as gateway:
            words = shlex.split(command(name))
            told = {"http://127.0.0.1:8080": gateway.url, "DIR": str(tiny_model()), "KEY": gateway.key("load")}
            said = [with_values(word, told) for word in words]
            log = folder / "said"
            with log.open("wb") as file:
                ended = subprocess.run(
                    [str(program), *said[1:]], cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                    timeout=RUN_S_MAX, check=False, env=os.environ | {"HOME": str(folder)},
                )  # fmt: skip
            facts = [fact for fact in gateway.journal() if fact["kind"] == "request.settled"]
            return {
                "version": version(name), "command": command(name), "status": ended.returncode,
                "endings": Counter(fact["ending"] for fact in facts),
                "tokens": sum(fact.get("completion_tokens", 0) for fact in facts), "faults": gateway.faults(),
                "said": "" if ended.returncode == 0 else log.read_text(errors="replace")[-SAID_MAX:],
            }  # fmt: skip
    finally:
        shutil.rmtree(folder)


def command(name: str) -> str:
    """As the document has it, in one line."""
    _, _, text = DOCUMENT.read_text("utf-8").partition(HEADING)
    lines = text.replace("\\\n", " ").splitlines()
    (found,) = (line.strip() for line in lines if line.startswith(f"    {name} "))
    return re.sub(r" +", " ", found)


def with_values(word: str, told: dict[str, str]) -> str:
    """A word of the command, with what it stands for."""
    for name, value in told.items():
        word = re.sub(rf"(?<![A-Za-z]){re.escape(name)}(?![A-Za-z])", lambda _, value=value: value, word)
    return word


def version(name: str) -> str:
    """Of the one that is installed."""
    (site,) = (ENVIRONMENTS / name).glob("lib/python*/site-packages")
    return next(one.version for one in distributions(path=[str(site)]) if one.metadata["Name"].lower() == name)


def asked(name: str, said: str) -> tuple[int, int]:
    """How many requests a command asks for, and how many tokens each."""
    counts, tokens = (re.search(pattern[name], said) for pattern in (COUNTS, TOKENS))
    assert counts, said
    assert tokens, said
    return int(counts[1]), int(tokens[1])


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was seen."""
    if NAME not in done:
        return {}
    found = {}
    for name in NAMES:
        one = done[NAME][name]
        requests, tokens = asked(name, one["command"])
        endings = ", ".join(f"{ending} {count}" for ending, count in sorted(one["endings"].items()))
        said = f"{name} {one['version']}, unmodified: {requests} requests of {tokens} tokens; the journal has "
        found[f"{said}{endings or 'none'}, {one['tokens']} tokens"] = (
            one["status"] == 0
            and one["endings"] == {"finished": requests}
            and one["tokens"] == requests * tokens
            and not one["faults"]
        )
    return found


def lines(done: dict[str, Any]) -> list[str]:
    """How they were run."""
    if NAME not in done:
        return []
    found = [f"{done[NAME]['on']}. With a key, through the gateway, as docs/load.md has it:", ""]
    for name in NAMES:
        one: dict[str, Any] = done[NAME][name]
        found += ["```sh", one["command"], "```", ""]
        if one["status"]:
            found += [f"It ended with status {one['status']}: {one['said']}", ""]
    return found
