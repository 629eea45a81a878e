"""A fleet that serves others: what of it a game day may break, by commands that its operator gives."""

import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.yaml_tree import Loc, Tree, Unreadable, read_tree
from loadtests.answers import Answer
from loadtests.gameday.ground import chat, equal
from loadtests.gameday.scenario import Missed, Observations, Probe, Scenario, trials
from loadtests.gateway_process import until

CUTTING = ("engine-kill", "engine-hang", "network-cut")  # that take a server from under its streams
STREAMS, TOKENS = 8, 200
BEGUN_S_MAX, COMMAND_S_MAX = 120.0, 60.0
LIMIT_S = 300.0
CHARACTERS_MAX = 1 << 16  # of the file


class BadRunning(Exception):
    """The file says nothing that can be used; the message says why, and which file and line."""


class Fault(BaseModel):
    """Commands of a shell. inject: makes the fault. heal: undoes it; it is run whatever became of the scenario."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    inject: Annotated[str, Field(min_length=1)]
    heal: Annotated[str, Field(min_length=1)]


class Running(BaseModel):
    """url: root URL of the gateway. key_env: the variable that holds a key. faults: by name of the scenario."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    url: Annotated[str, Field(pattern=r"^https?://[^/]+$")]
    model: Annotated[str, Field(min_length=1)]
    key_env: str = "OPENAI_API_KEY"
    faults: dict[str, Fault] = {}

    @property
    def key(self) -> str:
        """The key that is asked with; empty where the variable is not set."""
        return os.environ.get(self.key_env, "")

    def scenarios(self, known: Mapping[str, type[Scenario]]) -> dict[str, type[Scenario]]:
        """Those that there are commands for."""
        found = {}
        for name, one in known.items():
            if name in self.faults and name in CUTTING:
                told = {"name": name, "title": f"{one.title}, by the operator's command", "weight": one.weight}
                found[name] = type("Commanded", (Commanded,), told | {"why": one.why})
        return found

    @staticmethod
    def barred(scenario: type[Scenario]) -> str:
        """Why a scenario cannot be tried here."""
        if scenario.name in CUTTING:
            return "the file gives no command for it, under «faults»"
        return "it cannot be tried on a running fleet: it needs servers and gateways of its own"


class Commanded(Scenario):
    """A server is taken from under streams by the operator's command. There is no ledger to look at from here."""

    name = "commanded"
    title = "a fault by the operator's command"
    hypothesis = "every stream goes on from another server, equal to the answer before the fault"
    weight = 10
    why = "as on a fleet of our own"
    limit_s = LIMIT_S
    fleet = False

    def steady(self) -> Observations:
        """The same requests twice: greedy answers of one fleet are equal while nothing is wrong."""
        on = self.ground.on
        self.bodies = [
            chat(f"Tell me {n} things.", model=on.model, max_tokens=TOKENS, ignore_eos=True) for n in range(STREAMS)
        ]
        self.wanted, again = (self.ground.clients.ask(on.url, self.bodies, on.key) for _ in range(2))
        return {
            "whole": [answer.done and answer.error is None for answer in self.wanted],
            "errors": [_said(answer) for answer in self.wanted],
            "equal": equal(self.wanted, again),
        }

    def inject(self) -> Observations:
        """Begin the streams, then the command; what heals it is sure to be run from here on."""
        on, ground = self.ground.on, self.ground
        fault = on.faults[self.name]
        self.streams = ground.clients.begin(on.url, self.bodies, on.key)
        after = ground.rng.randrange(STREAMS * TOKENS // 16, STREAMS * TOKENS // 4)
        until(lambda: self.streams.tokens >= after or self.streams.done, BEGUN_S_MAX, f"{after} tokens")
        inject, heal = (
            Command(f"{word} of {self.name}", getattr(fault, word), ground.folder / f"{word}.log")
            for word in ("inject", "heal")
        )
        ground.cleanup.callback(inject.end)
        ground.cleanup.callback(heal.run_and_leave)
        inject.run()
        return {"command": self.name, "tokens_before": after, "streams": STREAMS}

    def observe(self) -> Observations:
        """The streams to their ends."""
        got = self.streams.wait()
        return {
            "equal": equal(self.wanted, got),
            "errors": [str((answer.error or {}).get("code", "")) for answer in got],
            "failed_over": sum(answer.said is not None for answer in got),
            "pause_s_max": max((gap for answer in got for gap in answer.gaps_s), default=0.0),
        }

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [
            trials("an answer is whole", seen["whole"], seen["errors"]),
            trials("a second one is equal", seen["equal"]),
        ]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        if not seen["failed_over"] and all(seen["equal"]):
            raise Missed("no stream was cut: the command broke nothing, or not what served them")
        return [trials("a stream equals its uninterrupted run", seen["equal"], seen["errors"])]


def read(path: Path) -> Running:
    """What the file says. Raises BadRunning."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(CHARACTERS_MAX + 1)
        if len(text) > CHARACTERS_MAX:
            raise BadRunning(f"{path}: longer than {CHARACTERS_MAX} characters")
        tree = read_tree(text)
        if tree.faults:
            raise Unreadable(tree.faults[0])
        running = Running.model_validate(tree.value)
    except ValidationError as error:
        first = error.errors()[0]
        raise _bad(path, first["loc"], first["msg"], tree) from None
    except Unreadable as error:
        fault = error.fault
        line = fault.mark.line if fault.mark else 1
        raise BadRunning(f"{path}:{line}: {fault.message}. {fault.hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadRunning(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if strange := [name for name in running.faults if name not in CUTTING]:
        raise _bad(path, ("faults", strange[0]), f"no command can make it; only {', '.join(CUTTING)}", tree)
    if "key_env" in running.model_fields_set and not running.key:
        raise _bad(path, ("key_env",), f"the variable {running.key_env} is not set", tree)
    return running


def _bad(path: Path, field: Loc, why: str, tree: Tree) -> BadRunning:
    line = tree.mark(field, name=True).line
    return BadRunning(f"{path}:{line}: {'.'.join(map(str, field)) or 'the file'}: {why}")


def _said(answer: Answer) -> str:
    """What was said in an answer's stead; empty where nothing was."""
    error = answer.error or {}
    return " ".join(str(one) for one in (answer.status if answer.status != 200 else "", error.get("code")) if one)


class Command:
    """One of the operator's commands, in a process group of its own.

    name: what messages call it; they hold neither the command nor what it says, as there may be secrets in both.
    log: the file for what it says, of which only its owner can read.
    """

    def __init__(self, name: str, line: str, log: Path) -> None:
        self._name, self._line, self._log = name, line, log
        self._shell: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Come back when its shell has ended. Raises OSError where it fails or takes too long, and ends all of it."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            self._shell = subprocess.Popen(
                self._line, shell=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        told = f"what it said is in {self._log.name}"
        try:
            status = ended(self._shell.pid, COMMAND_S_MAX)
            if status is None:
                raise OSError(f"«{self._name}» took more than {COMMAND_S_MAX:.0f} s; {told}")
            if status:
                raise OSError(f"«{self._name}» ended with status {status}; {told}")
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End what it left running in its group. May be called again, and before it was run."""
        if self._shell is not None and self._shell.returncode is None:
            with suppress(ProcessLookupError):  # the shell is not reaped yet, so that its group is nobody else's
                os.killpg(self._shell.pid, signal.SIGKILL)
            self._shell.wait()

    def run_and_leave(self) -> None:
        """Run it, and let go on what it left running: that is what was asked for."""
        self.run()
        assert self._shell is not None
        self._shell.wait()


def ended(pid: int, seconds: float) -> int | None:
    """The exit status of a child of ours once it has ended, which is left to be reaped; None while it runs still."""
    child = os.pidfd_open(pid)
    try:
        if not select.select([child], [], [], seconds)[0]:
            return None
        told = os.waitid(os.P_PIDFD, child, os.WEXITED | os.WNOWAIT)
    finally:
        os.close(child)
    assert told is not None
    return told.si_status if told.si_code == os.CLD_EXITED else 128 + told.si_status
