"""Injections by seed: a page is damaged, requests read it, and what they are answered is compared.

    .venv-vllm/bin/python -m tests.vllm_plugin.real.injections OUT.json --setting recompute --count 100 [--first 0]

Each injection has its own seed, which says all: what is asked, which page is damaged how and when, and who reads it.
The answers that they must get were given before anything was damaged. A token is right where it is the same one, and of
the same probability: that moves long before another token is chosen.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from loadtests.gameday import store_hand
from loadtests.gameday.store_hand import StoreHand
from tests.vllm_plugin.real.engine import Engine, prompts
from tests.vllm_plugin.real.injector import KINDS

BLOCK = 32
SHARED = 100  # tokens of a family's prompts: three pages and a bit
FAMILIES, EACH = 8, 3
ANSWER_MAX = 40
LATE_TOKENS = 24  # more steps than a request and its neighbours hold pages
LOGPROB_MOVED = 1e-5  # float32 and one way to compute: most are equal to the last bit
SETTINGS: dict[str, dict[str, Any] | None] = {
    "recompute": {"scrub": "all"},
    "abort": {"scrub": "all", "on_corruption": "abort"},
    "default": {},
    "scarce": {"scrub": 0.0001},  # one page of running requests a step
    "control": None,  # vLLM as it is
}
BETWEEN, STORED, RUNNING = "between two requests", "stored", ("prompt, while it runs", "answer, while it runs",
                                                             "being filled")  # fmt: skip
PLACES = (BETWEEN, *RUNNING, STORED)


class Asked(NamedTuple):
    """A prompt, how it is sampled, and the right answer with its logarithms of probabilities."""

    prompt: list[int]
    sampling: dict[str, Any]
    right: list[int]
    logprobs: list[float]


class Injection(NamedTuple):
    """What a seed says. family, readers: who is asked, by number. number: of the page, as a share of those there are.

    tokens: of the first reader, before the damage.
    """

    seed: int
    place: str
    kind: str
    family: int
    readers: tuple[int, ...]
    number: float
    tokens: int
    delay: int
    route: str

    @classmethod
    def of(cls, seed: int) -> "Injection":
        """Kinds and places by turns, the rest by chance."""
        rng = random.Random(seed)
        place = PLACES[seed % len(PLACES)]
        kinds = store_hand.KINDS if place == STORED else KINDS
        kind = kinds[seed // len(PLACES) % len(kinds)]
        readers = dict.fromkeys(rng.randrange(2 * EACH) for _ in range(rng.choice([1, 1, 2, 3])))
        return cls(
            seed, place, kind, rng.randrange(FAMILIES), tuple(readers), rng.random(), rng.randrange(1, 6),
            rng.randrange(3), rng.choice(store_hand.ROUTES),
        )  # fmt: skip


class Outcome(NamedTuple):
    """changed: the page was another one then. read: some request was to read it. counted: alarms. harmed: how many
    pages were damaged, times those who may find that. equal, errors, wrong: requests that were answered rightly, ended
    with an error, or ended well with other tokens. moved: requests of which a probability was another one, while
    nobody had an error. early: tokens that were given out wrong before an error. broken: chains that were found
    broken. again_wrong: whether somebody who came later was answered wrongly.
    """

    seed: int
    place: str
    kind: str
    changed: bool
    read: bool
    counted: int
    harmed: int
    equal: int
    errors: int
    wrong: int
    moved: int
    early: int
    broken: int
    again_wrong: int


class Injections:
    """All that is asked, with its right answers, and an engine to be damaged. hand: in its store, if it has one."""

    def __init__(self, engine: Engine, hand: StoreHand | None = None, slow: bool = False) -> None:
        self.engine, self._hand = engine, hand
        self._left = LATE_TOKENS if slow else 4
        rng = random.Random(5)
        drawn = prompts(5, FAMILIES, EACH, SHARED, 59)
        # Cut so that the page in which the answer begins is full soon.
        drawn = [[one[: rng.choice([0, BLOCK]) + rng.randrange(118, 127)] for one in family] for family in drawn]
        self.asked = [self._answered(family, 10 * number) for number, family in enumerate(drawn)]

    def one(self, injection: Injection) -> Outcome:
        """Damage a page, and see."""
        engine = self.engine
        family = self.asked[injection.family]
        readers = [family[number] for number in injection.readers]
        engine.forget()
        before = self._alarms()
        changed, read, harmed, names, given = self._harmed(injection, readers)
        engine.run(names)
        # Whatever was left behind spoils nobody who comes later.
        later = engine.add(readers[0].prompt, 2, **readers[0].sampling)
        engine.run([later])
        now = self._alarms()
        ends = [
            (engine.ended[name], engine.tokens[name], reader.right[:count])
            for name, reader, count in zip(names, readers, given, strict=True)
        ]
        errors = [(tokens, right) for end, tokens, right in ends if end == "error"]
        moved = [self._moved(name, reader) for name, reader in zip(names, readers, strict=True)]
        return Outcome(
            injection.seed, injection.place, injection.kind, changed, read, int(now[0] - before[0]), harmed,
            equal=sum(end == "length" and tokens == right for end, tokens, right in ends),
            errors=len(errors),
            wrong=sum(end != "error" and (end, tokens) != ("length", right) for end, tokens, right in ends),
            moved=sum(engine.ended[name] != "error" and far for name, far in zip(names, moved, strict=True)),
            early=sum(one != other for tokens, right in errors for one, other in zip(tokens, right, strict=False)),
            broken=int(now[1] - before[1]),
            again_wrong=int(engine.tokens[later] != readers[0].right[:2] or self._moved(later, readers[0])),
        )  # fmt: skip

    # ---- leaves

    def _harmed(self, injection: Injection, readers: list[Asked]) -> tuple[bool, bool, int, list[str], list[int]]:
        if injection.place == BETWEEN:
            return self._between(injection, readers)
        if injection.place == STORED:
            return self._stored(injection, readers)
        return self._running(injection, readers)

    def _between(self, injection: Injection, readers: list[Asked]) -> tuple[bool, bool, int, list[str], list[int]]:
        """One was asked, and has gone; some of its pages are hit by those who come then."""
        engine = self.engine
        first = self.asked[injection.family][injection.seed % (2 * EACH)]
        engine.keep()
        name = engine.add(first.prompt, 2, **first.sampling)
        engine.run([name])
        full = len(first.prompt) // BLOCK
        number = int(injection.number * full)
        other = (number + 1) % full
        table = engine.tables[name]
        changed = engine.damage(injection.kind, table[number], table[other], injection.seed)
        bad = {number, other} if injection.kind == "swap" else {number}
        read = any(min(bad) < hit(reader.prompt, first.prompt) for reader in readers)
        names, counts = self._ask(injection, readers, 6)
        return changed, read, len(bad) * (len(readers) + 1), names, counts

    def _running(self, injection: Injection, readers: list[Asked]) -> tuple[bool, bool, int, list[str], list[int]]:
        """They run, some of them later than others; the first one's page is damaged."""
        engine, first = self.engine, readers[0]
        begun = len(first.prompt)
        before = injection.tokens
        if injection.place == RUNNING[1]:  # its first page of the answer must be full
            before += BLOCK - begun % BLOCK
        elif injection.place == RUNNING[2] and (begun + before) % BLOCK in (0, 1):
            before += 2  # it has a page that is being filled, with something in it
        engine.keep()
        names, counts = self._ask(injection, readers, before + self._left)
        while len(engine.tokens.get(names[0], [])) < before:
            engine.step()
        full = (begun + before - 1) // BLOCK  # the last token is not in a page yet
        number = {
            RUNNING[0]: int(injection.number * (begun // BLOCK)), RUNNING[1]: begun // BLOCK, RUNNING[2]: full
        }[injection.place]  # fmt: skip
        table = engine.tables[names[0]]
        changed = engine.damage(injection.kind, table[number], table[number - 1], injection.seed)
        return changed, True, (1 + (injection.kind == "swap")) * (len(readers) + 1), names, counts

    def _stored(self, injection: Injection, readers: list[Asked]) -> tuple[bool, bool, int, list[str], list[int]]:
        """Nothing is resident, and what is brought from the store is not what was put there."""
        assert self._hand is not None
        engine, first = self.engine, readers[0]
        name = engine.add(first.prompt, 2, **first.sampling)
        engine.run([name])
        loaded = (len(first.prompt) - 1) // BLOCK
        keys = self._hand.keys(engine.chains[name][:loaded])
        number = int(injection.number * loaded)
        other = (number + 1) % loaded
        self._hand.keep(keys[other])
        changed = self._hand.damage(injection.kind, injection.route, keys[number], keys[other], injection.seed)
        engine.forget()
        names, counts = self._ask(injection, readers, 6)
        return changed, True, (1 + (injection.kind == "swap")) * (len(readers) + 1), names, counts

    def _ask(self, injection: Injection, readers: list[Asked], count: int) -> tuple[list[str], list[int]]:
        """All, with some steps between them."""
        names = []
        for number, reader in enumerate(readers):
            for _ in range(injection.delay if number else 0):
                self.engine.step()
            names.append(self.engine.add(reader.prompt, count, **reader.sampling))
        return names, [count] * len(readers)

    def _answered(self, family: list[list[int]], seed: int) -> list[Asked]:
        """A family, greedy and with a temperature, before anything is damaged."""
        how: list[dict[str, Any]] = [{"logprobs": 0}] * len(family)
        how += [{"logprobs": 0, "temperature": 1.0, "seed": seed + number} for number in range(len(family))]
        longest = max(ANSWER_MAX, BLOCK + 8 + self._left)
        names = [self.engine.add(one, longest, **sampling) for one, sampling in zip(family * 2, how, strict=True)]
        right = self.engine.run(names)
        logprobs = [self.engine.logprobs[name] for name in names]
        return [Asked(*one) for one in zip(family * 2, how, right, logprobs, strict=True)]

    def _moved(self, name: str, asked: Asked) -> bool:
        """Whether a token that was given out had another probability than it should have."""
        said = self.engine.logprobs[name]
        return any(abs(one - other) > LOGPROB_MOVED for one, other in zip(said, asked.logprobs, strict=False))

    def _alarms(self) -> tuple[float, float]:
        return self.engine.metric("holdfast_pages_corrupt"), self.engine.metric("holdfast_chains_broken")


def hit(prompt: list[int], before: list[int]) -> int:
    """How many pages a prompt finds that another one has left."""
    same = next((n for n, (a, b) in enumerate(zip(prompt, before, strict=False)) if a != b), len(before))
    return min(same, len(before), len(prompt) - 1) // BLOCK


@contextlib.contextmanager
def store_of(setting: str) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """What is said to the plugin, with a store in shared memory, and its address; both empty without the plugin."""
    said = SETTINGS[setting]
    if said is None:
        yield None, ""
        return
    place = Path(f"/dev/shm/holdfast-test-{os.getpid()}")
    address = f"lmdb://{place}?size=64MiB"
    try:
        yield said | {"store": address}, address
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def prepared(folder: Path, setting: str) -> Iterator[Injections]:
    """An engine with a store of its own, ready to be damaged."""
    with store_of(setting) as (settings, address):
        engine = Engine(folder, settings, num_gpu_blocks_override=128)
        try:
            yield Injections(engine, StoreHand(address) if address else None, slow=setting == "scarce")
        finally:
            engine.stop()


def seeds(setting: str, first: int, count: int) -> Iterator[Injection]:
    """So many injections; without the plugin there is no store."""
    drawn = (Injection.of(seed) for seed in range(first, first + count))
    return (one for one in drawn if setting != "control" or one.place != STORED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--setting", choices=SETTINGS, default="recompute")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    said_s = time.monotonic()
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, prepared(Path(folder), given.setting) as bench:
        for injection in seeds(given.setting, given.first, given.count):
            done.append(bench.one(injection)._asdict())
            if time.monotonic() - said_s > 5:
                said_s = time.monotonic()
                print(f"{given.setting}: {len(done)} of {given.count}", file=sys.stderr, flush=True)
        answers = [one.right for family in bench.asked for one in family]
    given.out.write_text(json.dumps({"injections": done, "answers": [one[:ANSWER_MAX] for one in answers]}))


if __name__ == "__main__":
    main()
