"""The books told again: what the journal says was charged, to each account and for each request."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from gateway.books.ledger.contract import Place
from guards.money import Price

CHUNK_BYTES = 1 << 20


class Damaged(ValueError):
    """A journal of which a line is damaged or missing; its text says where."""


class Fact(Struct, gc=False):
    """One line of the journal, as far as it is about what was spent. charges: account and amount; more: of them are in
    facts to come.

    price, first, last: of a model, from one fact to another, where `why` it was corrected is that it was repriced.
    """

    seq: int
    at: float
    kind: str
    request_id: str = ""
    org: str | None = None
    team: str | None = None
    user: str | None = None
    key_id: str | None = None
    session: str | None = None
    agent: str | None = None
    model: str | None = None
    ending: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    charged_tokens: int | None = None
    cost: int | None = None
    charges: list[tuple[Place, int]] = []
    more: bool = False
    lost: int | bool = 0  # facts, in a `journal.gap`; other kinds mean other things by it
    why: str = ""
    price: Price | None = None
    first: int = 0
    last: int = 0


_decode = msgspec.json.Decoder(Fact).decode


def facts(path: Path, since_s: float = 0.0) -> Iterator[Fact]:
    """Give the facts of a journal in order, from those about `since_s` (unix seconds) on; none where there is none.

    Also while it is being written: an unfinished last line is left out. Raises Damaged at a line that is damaged or
    missing.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        start = _start(path, file.fileno(), since_s) if since_s > 0 else 0
        file.seek(start)
        last = None
        for line in file:
            if not line.endswith(b"\n"):
                return
            fact = decoded(path, line, start)
            if last is not None and fact.seq != last + 1:
                raise Damaged(f"{path}: line {fact.seq} follows line {last}, at byte {start}")
            last = fact.seq
            start += len(line)
            if fact.at >= since_s:
                yield fact


class Replayed(NamedTuple):
    """What a journal comes to. lost: facts that it says it lost, and the books can then differ by."""

    charged: Counter[Place]
    facts: int
    lost: int


def replay_all(paths: Iterable[Path]) -> Replayed:
    """Sum up what several journals say was charged, by account. Raises Damaged."""
    charged: Counter[Place] = Counter()
    count = lost = 0
    for one in map(replay, paths):
        charged.update(one.charged)
        count, lost = count + one.facts, lost + one.lost
    return Replayed(charged, count, lost)


def replay(path: Path) -> Replayed:
    """Sum up what was charged, by account. Raises Damaged."""
    charged: Counter[Place] = Counter()
    count = lost = before = 0
    for fact in facts(path):
        count += 1
        for place, amount in fact.charges:
            charged[place] += amount
        if fact.kind == "journal.gap":  # since that process began
            lost += fact.lost - before if fact.lost > before else fact.lost
            before = fact.lost
    return Replayed(charged, count, lost)


def differences(charged: Counter[Place], spent: dict[Place, int]) -> list[tuple[Place, int, int]]:
    """The accounts whose journal and ledger differ: what each of them says."""
    places = sorted(charged.keys() | spent.keys())  # one that was pruned is at nothing in the journal, too
    return [(at, charged[at], spent.get(at, 0)) for at in places if charged[at] != spent.get(at, 0)]


def decoded(path: Path, line: bytes, start: int | None = None) -> Fact:
    """Read a line of a journal, which begins at byte `start`. Raises Damaged."""
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        where = "a line" if start is None else f"the line that begins at byte {start}"
        raise Damaged(f"{path}: damaged in {where}") from None


def _start(path: Path, descriptor: int, since_s: float) -> int:
    """Find a line's beginning before which all facts are older, by halving; times nearly always grow."""
    low, high = 0, os.fstat(descriptor).st_size
    while high - low > CHUNK_BYTES:
        middle = (low + high) // 2
        chunk = os.pread(descriptor, CHUNK_BYTES, middle)
        begin = chunk.find(b"\n") + 1
        end = chunk.find(b"\n", begin)
        if begin == 0 or end < 0:
            break
        if decoded(path, chunk[begin:end], middle + begin).at < since_s:
            low = middle + begin
        else:
            high = middle
    return low
