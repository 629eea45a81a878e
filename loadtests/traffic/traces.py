"""Traces of real traffic, read and scaled: when requests came, how long they were, and what their prompts shared.

Two formats are known by what stands in their first line.
- Mooncake (https://github.com/kvcache-ai/Mooncake, FAST25-release/traces): JSON lines of timestamp (ms), input_length,
  output_length and hash_ids, one for each block of 512 tokens. There is no text: each hash id is given the same text
  wherever it stands, so that requests which shared a prefix share one.
- Azure (https://github.com/Azure/AzurePublicDataset, 2023): CSV of TIMESTAMP, ContextTokens, GeneratedTokens. Nothing
  is known of prefixes: no two prompts share one.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import file_digest
from itertools import islice
from pathlib import Path
from typing import Any

from loadtests.traffic.text import shared, words

BLOCK_TOKENS = 512  # of a hash id in Mooncake's traces
ROWS_MAX = 1_000_000
PROMPT_TOKENS_MAX = 1_000_000  # of one prompt, after scaling
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)  # of one line
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceError(ValueError):
    """A trace that cannot be read; says the file and the line."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request of a trace. at_s: after the first one. hash_ids: of its blocks; none where they are not known."""

    at_s: float
    prompt_tokens: int
    tokens: int
    hash_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    """How a trace is made to fit. speed: times as fast; size: of prompts and answers, as a share of theirs.

    words: that make a token of this model's, on average.
    """

    speed: float = 1.0
    size: float = 1.0
    words: float = 1.0

    def of(self, tokens: int) -> int:
        """A number of tokens, scaled; never none."""
        return max(1, min(PROMPT_TOKENS_MAX, round(tokens * self.size)))

    @property
    def words_most(self) -> int:
        """How many words a prompt has at most."""
        return max(1, round(PROMPT_TOKENS_MAX * self.words))

    def words_of(self, tokens: int) -> int:
        """How many words a text has that is that long, scaled."""
        return max(1, round(self.of(tokens) * self.words))


def read(path: Path, rows: int = ROWS_MAX) -> list[Row]:
    """The first rows of a trace, in the order of their times. Raises TraceError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            if first.startswith("{"):
                found = list(islice(_mooncake(path, file), min(rows, ROWS_MAX)))
            elif [name.strip() for name in first.split(",")] == list(AZURE):
                found = list(islice(_azure(path, file), min(rows, ROWS_MAX)))
            else:
                raise TraceError(f"{path}:1: neither a line of JSON nor the head {','.join(AZURE)}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not found:
        raise TraceError(f"{path}: has no request")
    begun_s = min(row.at_s for row in found)
    moved = [Row(row.at_s - begun_s, row.prompt_tokens, row.tokens, row.hash_ids) for row in found]
    return sorted(moved, key=lambda row: row.at_s)


def digest(path: Path) -> str:
    """What the same trace has wherever it lies, and no other one. Raises OSError."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def prompt(row: Row, number: int, seed: int, scale: Scale) -> str:
    """The text of a request's prompt. number: its place in the trace; the same seed makes the same text.

    Rows that begin with the same hash ids begin with the same text, to the end of the last block that they share whole.
    """
    if not row.hash_ids:
        return words(f"{seed}/row/{number}", scale.words_of(row.prompt_tokens))
    block, room, parts = scale.words_of(BLOCK_TOKENS), scale.words_most, []
    for place, hash_id in enumerate(row.hash_ids):
        left = row.prompt_tokens - place * BLOCK_TOKENS  # the last block may be begun only
        count = min(room, block if left >= BLOCK_TOKENS else scale.words_of(left))
        parts.append(shared(f"{seed}/block/{hash_id}", count))
        room -= count
        if not room:
            break
    return "".join(parts)


def _mooncake(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                said = json.loads(line)
                ids = tuple(int(one) for one in said.get("hash_ids") or ())
                at_s = float(said["timestamp"]) / 1e3
                if not math.isfinite(at_s):
                    raise ValueError(f"timestamp is {said['timestamp']}")
                row = Row(at_s, _count(said, "input_length"), _count(said, "output_length"), ids)
            except UNREADABLE as error:
                raise TraceError(f"{path}:{number}: {_why(error)}") from None
            if ids and len(ids) != -(-row.prompt_tokens // BLOCK_TOKENS):
                raise TraceError(f"{path}:{number}: {len(ids)} hash_ids for {row.prompt_tokens} tokens")
            yield row


def _azure(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    for number, said in enumerate(csv.DictReader(lines), 2):
        try:
            at_s = datetime.fromisoformat(said["TIMESTAMP"].strip()[:26]).timestamp()
            yield Row(at_s, _count(said, "ContextTokens"), _count(said, "GeneratedTokens"))
        except UNREADABLE as error:
            raise TraceError(f"{path}:{number}: {_why(error)}") from None


def _count(said: Any, name: str) -> int:
    value = int(said[name])
    if value < 0:
        raise ValueError(f"{name} is {value}")
    return value


def _why(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
