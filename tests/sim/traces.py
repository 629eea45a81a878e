"""Requests as they came: read from public traces, or drawn with bursts and heavy tails."""

import csv
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from random import Random
from typing import NamedTuple

HASHED_TOKENS = 512  # of a prompt, per hash id in Mooncake's traces


class Arrival(NamedTuple):
    """One request. prefix: what its prompt begins with, block by block; none where that is not known."""

    at_s: float
    input_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()


def azure(path: Path) -> list[Arrival]:
    """Azure's LLM inference trace of 2023: TIMESTAMP, ContextTokens, GeneratedTokens."""
    with path.open(newline="") as file:
        rows = [
            (datetime.fromisoformat(row["TIMESTAMP"][:26]), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(file)
        ]
    first = min(at for at, _, _ in rows)
    return sorted(Arrival((at - first).total_seconds(), asked, given) for at, asked, given in rows if asked and given)


def mooncake(path: Path) -> list[Arrival]:
    """Mooncake's traces: timestamps in milliseconds, and ids of the blocks of each prompt."""
    with path.open() as file:
        rows = [json.loads(line) for line in file]
    return sorted(
        Arrival(row["timestamp"] / 1e3, row["input_length"], row["output_length"], tuple(row["hash_ids"]))
        for row in rows
        if row["input_length"] and row["output_length"]
    )


READERS = {".csv": azure, ".jsonl": mooncake}


def read(path: Path) -> list[Arrival]:
    """One file of either kind."""
    return READERS[path.suffix](path)


def traces(folder: Path) -> Iterator[tuple[str, list[Arrival]]]:
    """Every trace in a folder, by its file's name. Raises ValueError where there is none."""
    found = sorted(path for path in folder.iterdir() if path.suffix in READERS)
    if not found:
        raise ValueError(f"{folder}: no *.csv of Azure's, no *.jsonl of Mooncake's")
    for path in found:
        yield path.stem, read(path)


def drawn(seed: int, requests: int, *, per_s: float = 6.0) -> list[Arrival]:
    """Calm and bursts in turn (a Poisson process with two rates), with lognormal lengths.

    per_s: in calm; four times as many in a burst. A third of the prompts are short, as of a chat.
    """
    rng, now_s, turns_s, burst = Random(seed), 0.0, 0.0, True
    found: list[Arrival] = []
    while len(found) < requests:
        if now_s >= turns_s:
            burst = not burst
            turns_s = now_s + rng.expovariate(1 / (3.0 if burst else 15.0))
        now_s += rng.expovariate(per_s * (4.0 if burst else 1.0))
        middle = 4.5 if rng.random() < 1 / 3 else 7.0  # of the logarithm: 90 tokens, or 1100
        asked = min(16_000, max(1, int(rng.lognormvariate(middle, 0.9))))
        given = min(1_000, max(1, int(rng.lognormvariate(3.8, 1.0))))
        found.append(Arrival(now_s, asked, given))
    return found


def scaled(
    arrivals: Sequence[Arrival], per_s: float, input_mean: float, output_mean: float, most: int
) -> list[Arrival]:
    """The same trace for a smaller machine: so many requests per second and tokens of each, in the mean.

    Bursts and tails keep their shape. most: tokens of a prompt, or of an answer; longer ones end there. Prefixes are
    forgotten.
    """
    stretch = len(arrivals) / per_s / (arrivals[-1].at_s or 1.0)
    asked = input_mean * len(arrivals) / sum(one.input_tokens for one in arrivals)
    given = output_mean * len(arrivals) / sum(one.output_tokens for one in arrivals)

    def within(tokens: float) -> int:
        return max(1, min(most, round(tokens)))

    return [
        Arrival(one.at_s * stretch, within(one.input_tokens * asked), within(one.output_tokens * given))
        for one in arrivals
    ]

