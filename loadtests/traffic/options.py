"""What a run can be told: options of `locust -f loadtests/locustfile.py`, and of `holdfast load`."""

import argparse
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from loadtests.traffic import traces
from loadtests.traffic.plan import Plan
from loadtests.traffic.record import Record, Stage
from loadtests.traffic.scenarios import MIXED, REPLAY, TENANTS, Sizes

KEY, DIRECT_KEY = "OPENAI_API_KEY", "HOLDFAST_UPSTREAM_KEY"  # from the environment: everybody can read options
IN_FLIGHT, PATIENCE_S = 2000, 60.0
STEPS_MAX = 50
SLA = "ttft=1,tpot=0.1"
PARTS = ("ttft", "tpot", "e2e")


class BadOption(ValueError):
    """An option that says nothing; tells which one, and what it may say."""


class Sla(NamedTuple):
    """What a request must keep to count as good, in seconds; None where nothing is said."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def kept(self, record: Record) -> bool:
        """Whether a request was whole and in time. One token has no time between tokens."""
        seen = (record.first_s, record.per_token_s or 0.0, record.end_s)
        in_time = all(most is None or (one is not None and one <= most) for one, most in zip(seen, self, strict=True))
        return record.stage is Stage.WHOLE and in_time

    def broken(self, record: Record) -> bool:
        """Whether a request that is still open can not be in time any more."""
        open_s = record.end_s
        first_s = open_s if record.first_s is None else record.first_s
        late = ((self.ttft, first_s), (self.e2e, open_s))
        return record.stage is Stage.UNFINISHED and any(most is not None and most < seen for most, seen in late)

    def __str__(self) -> str:
        return ", ".join(f"{name} ≤ {most:g} s" for name, most in zip(PARTS, self, strict=True) if most is not None)


def sla(text: str) -> Sla:
    """Read `ttft=0.5,tpot=0.05`. Raises BadOption."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in PARTS or not equals or not re.fullmatch(r"\d+(\.\d+)?", value.strip()):
            raise BadOption(f"--sla {text!r}: write such as {SLA}, of {', '.join(PARTS)}, in seconds")
        found[name] = float(value)
    return Sla(**found)


def rates(text: str) -> tuple[float, ...]:
    """Read `2,4,8`: clients a second, one after the other; nothing where clients come when the last one left."""
    if not text.strip():
        return ()
    found = text.split(",")
    if len(found) > STEPS_MAX or not all(re.fullmatch(r"\d+(\.\d+)?", one.strip()) for one in found):
        raise BadOption(f"--rate {text!r}: write clients a second, such as 4, or 2,4,8 (at most {STEPS_MAX})")
    return tuple(float(one) for one in found)


def keys(path: str | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Tenants' keys, by name: from a file with a name and a key on each line, else the one of the environment."""
    if not path:
        return {"": environ[KEY]} if environ.get(KEY) else {}
    found = {}
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadOption(f"--keys {path}: {getattr(error, 'strerror', None) or 'is not UTF-8'}") from None
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        if words and len(words) != 2:
            raise BadOption(f"{path}:{number}: write a tenant's name and its key, with a space between them")
        if words:
            found[words[0]] = words[1]
    if not found:
        raise BadOption(f"--keys {path}: no key is in it")
    return found


def root(url: str) -> str:
    """A server's root, from its URL with or without /v1. Raises BadOption."""
    if not re.match(r"https?://[^/]", url):
        raise BadOption(f"{url!r}: write a URL such as http://127.0.0.1:8080")
    return re.sub(r"/+(v1/*)?$", "", url)


def add(parser: Any) -> None:
    """The options, for an argparse parser."""
    group = parser.add_argument_group("Traffic", "docs/load.md")
    for name, words in OPTIONS.items():
        group.add_argument(f"--{name}", **({"env_var": f"HOLDFAST_LOAD_{name.upper().replace('-', '_')}"} | words))


OPTIONS: dict[str, dict[str, Any]] = {
    "rate": {
        "default": "",
        "help": "clients a second, in an open loop: 4, or one after the other 2,4,8; "
        "unsaid: one a second (holdfast load); each user begins anew when it is done (locust)",
    },
    "each-s": {"type": float, "default": 30.0, "help": "how long each rate lasts, in seconds"},
    "seed": {"type": int, "default": 1, "help": "of all that is random"},
    "model": {"default": "", "help": "unsaid: the first of /v1/models"},
    "sla": {"default": SLA, "help": "what a good request keeps: ttft, tpot, e2e, in seconds"},
    "direct": {"default": "", "help": "a server's own URL: each request is asked there too, to be compared"},
    "keys": {"default": "", "help": f"a file of tenants' names and keys; else the key is in {KEY}"},
    "no-ids": {
        "action": "store_true",
        "help": "ask for no token ids (return_token_ids, of vLLM): tokens are not counted then",
    },
    "free-length": {"action": "store_true", "help": "let answers end on their own (without ignore_eos, of vLLM)"},
    "tool-calls": {
        "action": "store_true",
        "help": "agents' tools in OpenAI's fields, which not every chat template knows",
    },
    "size": {"type": float, "default": 1.0, "help": "of prompts and answers: times as long"},
    "context": {"type": int, "default": 4096, "help": "the model's window, in tokens"},
    "words-per-token": {
        "type": float,
        "default": 0.0,
        "help": "that prompts are made of; unsaid: the model is asked, once",
    },
    "think-s": {"type": float, "default": 2.0, "help": "of people, between turns, on average"},
    "patience-s": {
        "type": float,
        "default": PATIENCE_S,
        "help": "for one read, for one event, and for what is open when no more come",
    },
    "in-flight": {
        "type": int,
        "default": IN_FLIGHT,
        "help": "clients open at once, in one process; more are not let in",
    },
    "trace": {"default": "", "help": "a trace for Replay: Mooncake's JSON lines, or Azure's CSV"},
    "speed": {"type": float, "default": 1.0, "help": "of a trace: times as fast"},
    "rows": {"type": int, "default": traces.ROWS_MAX, "help": "of a trace: how many of its first"},
    "metrics": {
        "default": "",
        "help": "the gateway's admin port, such as http://127.0.0.1:8081, or all of its workers' with "
        "commas: memory, failovers and budgets come into the report",
    },
    "records": {"default": "", "help": "a folder for what came of every request"},
    "report": {"default": "", "help": "an HTML file to write at the end, with JSON beside it"},
}


class Settings(NamedTuple):
    """Options that were read. None of them is wrong."""

    rates_per_s: tuple[float, ...]
    sla: Sla
    keys: dict[str, str]
    direct: str
    metrics: tuple[str, ...]
    sizes: Sizes
    rows: tuple[traces.Row, ...]
    given: argparse.Namespace

    def worded(self, words_per_token: float) -> "Settings":
        """The same for a model of which so many words make a token."""
        return self._replace(sizes=replace(self.sizes, words=words_per_token))

    def plan(self, scenario: str) -> Plan:
        """What is done of a scenario. Mixed tenants are as they are; others take turns with the keys."""
        given = self.given
        return Plan(
            scenario, given.seed, self.rates_per_s or (1.0,), given.each_s, self.sizes,
            self.rows if scenario == REPLAY else (), traces.Scale(given.speed, given.size, self.sizes.words),
            tuple(name for name in self.keys if name),
        )  # fmt: skip


def check(scenarios: Collection[str], settings: Settings) -> None:
    """Whether scenarios can be had with these settings, and with each other. Raises BadOption."""
    if REPLAY in scenarios:
        if not settings.rows:
            raise BadOption("replay needs a trace: --trace FILE")
        if len(scenarios) > 1 or settings.rates_per_s:
            raise BadOption("replay goes as its trace says: alone, and without --rate (--speed 2: twice as fast)")
    missing = [name for name, *_ in MIXED if name not in settings.keys]
    if TENANTS in scenarios and missing and set(settings.keys) - {""}:
        said = f"tenants have a key each, and there is none of {', '.join(missing)}"
        raise BadOption(f"--keys {settings.given.keys}: {said}")


def read(given: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read what was given. Raises BadOption, traces.TraceError."""
    for name, least, most in (
        ("each_s", 0.1, 86_400),
        ("size", 1e-4, 100),
        ("speed", 1e-3, 1e6),
        ("context", 16, 10**7),
        ("think_s", 0, 3600),
        ("patience_s", 0.1, 3600),
        ("in_flight", 1, 100_000),
        ("rows", 1, traces.ROWS_MAX),
        ("words_per_token", 0, 100),
    ):
        value = getattr(given, name)
        if not least <= value <= most:
            raise BadOption(f"--{name.replace('_', '-')} {value:g}: {least:g} to {most:g}")
    sizes = Sizes(
        given.size, given.context, given.think_s, given.words_per_token or 1.0, not given.free_length, given.tool_calls
    )
    rows = tuple(traces.read(Path(given.trace), given.rows)) if given.trace else ()
    return Settings(
        rates(given.rate), sla(given.sla), keys(given.keys, environ), root(given.direct) if given.direct else "",
        tuple(root(one.strip()) for one in given.metrics.split(",") if one.strip()), sizes, rows, given,
    )  # fmt: skip
