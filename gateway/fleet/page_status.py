"""What a replica's plugin says of its KV pages, in answer to GET /holdfast/status."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Annotated, Any, NamedTuple

import msgspec

from guards.continuing import PROTOCOL, Continues, together
from guards.integrity import Corruption, Plan

PATH = "/holdfast/status"
BYTES_MAX = 256 << 10  # of an answer; an engine has less than one kilobyte to say
ENGINES_MAX = 1024
KINDS_MAX = 64  # of corruption, by kind and place; there are a dozen
COUNT_MAX = 1 << 53
STORED = ("queued_pages", "saved", "shed", "lost", "fenced", "loaded", "missed")  # counts of a page store
# Not the server's own memory: pages of which nobody can say what they were, and such as came from elsewhere, out of a
# page store or by another connector.
UNKNOWN, ELSEWHERE = "absent", ("load", "brought")

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=float(COUNT_MAX))]
Word = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[!-~]*$")]  # it is shown on terminals
Words = Annotated[list[Word], msgspec.Meta(max_length=KINDS_MAX)]
Line = Annotated[str, msgspec.Meta(max_length=256, pattern=r"^[ -~]*$")]
Hexes = Annotated[str, msgspec.Meta(max_length=8192, pattern=r"^[0-9a-f,]*$")]

Sampling = Annotated[dict[Word, float], msgspec.Meta(max_length=KINDS_MAX)]


class Plugin(StrEnum):
    """What is known of a replica's plugin."""

    UNASKED = "unknown"
    NONE = "none"
    UNREADABLE = "unreadable"
    TOLD = "told"


class _Bad(msgspec.Struct):
    kind: Word
    where: Word
    pages: Count


class _Pages(msgspec.Struct):
    resident: Count = 0
    sealed: Count = 0
    verified: Count = 0
    scrubbed: Count = 0
    evicted: Count = 0
    withdrawn: Count = 0
    saved: Count = 0
    loaded: Count = 0


class _Requests(msgspec.Struct):
    recomputed: Count = 0
    aborted: Count = 0


class _Cycle(msgspec.Struct):
    cycle_s: Seconds | None = None
    changes: Count = 0


class _Continues(msgspec.Struct):
    protocol: int
    seeds: bool
    refused: Words


class _Store(msgspec.Struct):
    kind: Word
    queued_pages: Count = 0
    lag_s: Seconds = 0.0
    saved: Count = 0
    shed: Count = 0
    lost: Count = 0
    fenced: Count = 0
    loaded: Count = 0
    missed: Count = 0


class _Engine(msgspec.Struct):
    protected: bool
    corrupt: Annotated[list[_Bad], msgspec.Meta(max_length=KINDS_MAX)]
    version: Word = ""
    unprotected: Words = []
    fingerprint: Hexes = ""  # with a comma between those of several models
    weights: _Cycle = msgspec.field(default_factory=_Cycle)
    pages: _Pages = msgspec.field(default_factory=_Pages)
    requests: _Requests = msgspec.field(default_factory=_Requests)
    chains_broken: Count = 0
    scrub: _Cycle = msgspec.field(default_factory=_Cycle)
    sampling_defaults: Sampling | None = None
    continues: Any = None  # read apart: where that is odd, the rest still counts
    continues_not: Any = None
    store: _Store | None = None


class _Engines(msgspec.Struct):
    engines: Annotated[list[_Engine], msgspec.Meta(min_length=1, max_length=ENGINES_MAX)]


class Store(NamedTuple):
    """The page store of a replica's engines. kind: what it is. lag_s: how long the oldest page waits to be written.

    counts: pages, by what became of them since the engines' start.
    """

    kind: str
    lag_s: float
    counts: Mapping[str, int]


class PageStatus(NamedTuple):
    """Of all engines of a replica together, since their start. at_s: when it was asked, by the fleet's clock.

    protected: whether all of them are. unprotected: what they run unprotected, each named once.
    corrupt: pages by kind and place. fingerprints: of their models, each once; none while they are not known.
    pages, requests: counts by name. scrub_s, weights_s: the longest cycle of the scrubber, and of the watch on weights.
    sampling: what requests get for fields that they leave out, where it is not vLLM's own; None where it does not say.
    continues: which streams of others it can continue by replay; None: none, and continues_not says why, if it is told.
    store: where all of them keep their pages outside; None where one of them does not.
    nameless: engines that tell no fingerprint yet.
    """

    at_s: float
    engines: int
    protected: bool
    unprotected: tuple[str, ...]
    versions: tuple[str, ...]
    fingerprints: tuple[str, ...]
    corrupt: Mapping[tuple[str, str], int]
    pages: Mapping[str, int]
    requests: Mapping[str, int]
    chains_broken: int
    scrub_s: float | None
    weights_s: float | None
    weights_changed: int
    sampling: Mapping[str, float] | None = None
    continues: Continues | None = None
    continues_not: str = ""
    store: Store | None = None
    nameless: int = 0

    @property
    def bad(self) -> int:
        """Pages that went bad in its own memory."""
        return sum(n for (kind, where), n in self.corrupt.items() if kind != UNKNOWN and where not in ELSEWHERE)


@dataclass(slots=True)
class Pages:
    """What is known of a replica's pages. asked_s: when it was last asked.

    plugin: whether it has one; status: what that said last, kept while it says nothing that can be read.
    fresh_s: for how long that may be relied on where a wrong answer would follow if it did not hold any more.
    """

    corruption: Corruption = field(default_factory=lambda: Corruption(Plan()))
    plugin: Plugin = Plugin.UNASKED
    status: PageStatus | None = None
    asked_s: float = -inf
    fresh_s: float = 0.0

    def reliable(self, since_s: float, now_s: float) -> PageStatus | None:
        """What its plugin says; None where it says nothing that can be read, or has not lately, or not since then."""
        told = self.status
        if told is None or self.plugin is not Plugin.TOLD or told.at_s < since_s or now_s - told.at_s > self.fresh_s:
            return None
        return told

    def continues(self, since_s: float, now_s: float) -> Continues | None:
        """What it continues by replay; None where it says none, or what it says cannot be relied on now."""
        told = self.reliable(since_s, now_s)
        return None if told is None else told.continues

    def bond(self, since_s: float, now_s: float) -> frozenset[str]:
        """The fingerprints that a stream may be bound to; none where one of its engines has not told one, or that
        cannot be relied on now."""
        told = self.reliable(since_s, now_s)
        return frozenset() if told is None or told.nameless else frozenset(told.fingerprints)


def read(body: bytes, at_s: float) -> PageStatus | None:
    """Read an answer, of one engine or of several; None where it is none."""
    engines = _several(body) or _one(body)
    return _together(engines, at_s) if engines else None


def _several(body: bytes) -> list[_Engine]:
    try:
        return msgspec.json.decode(body, type=_Engines).engines
    except UNREADABLE:
        return []


def _one(body: bytes) -> list[_Engine]:
    try:
        return [msgspec.json.decode(body, type=_Engine)]
    except UNREADABLE:
        return []


def _together(engines: list[_Engine], at_s: float) -> PageStatus:
    corrupt: dict[tuple[str, str], int] = {}
    for bad in (bad for one in engines for bad in one.corrupt):
        corrupt[bad.kind, bad.where] = corrupt.get((bad.kind, bad.where), 0) + bad.pages
    return PageStatus(
        at_s,
        len(engines),
        all(one.protected for one in engines),
        _once(word for one in engines for word in one.unprotected),
        _once(one.version for one in engines),
        _once(each for one in engines for each in one.fingerprint.split(",")),
        corrupt,
        _sums(one.pages for one in engines),
        _sums(one.requests for one in engines),
        sum(one.chains_broken for one in engines),
        max((one.scrub.cycle_s for one in engines if one.scrub.cycle_s is not None), default=None),
        max((one.weights.cycle_s for one in engines if one.weights.cycle_s is not None), default=None),
        sum(one.weights.changes for one in engines),
        engines[0].sampling_defaults,
        together(_continues(one.continues) for one in engines),
        next((why for one in engines if one.continues is None and (why := _line(one.continues_not))), ""),
        _outside([one.store for one in engines]),
        sum(not one.fingerprint.strip(",") for one in engines),
    )


def _continues(said: Any) -> Continues | None:
    """What one says of replays; None also where it is odd, or of another protocol."""
    try:
        found = msgspec.convert(said, _Continues | None)
    except msgspec.ValidationError:
        return None
    if found is None or found.protocol != PROTOCOL:
        return None
    return Continues(found.seeds, frozenset(found.refused))


def _line(said: Any) -> str:
    try:
        return msgspec.convert(said, Line)
    except msgspec.ValidationError:
        return ""


def _outside(stores: list[_Store | None]) -> Store | None:
    told = [one for one in stores if one is not None]
    if len(told) < len(stores):
        return None
    counts = {name: sum(getattr(one, name) for one in told) for name in STORED}
    return Store("+".join(_once(one.kind for one in told)), max(one.lag_s for one in told), counts)


def _once(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if word))


def _sums(counts: Iterable[msgspec.Struct]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in counts:
        for name, count in msgspec.structs.asdict(one).items():
            found[name] = found.get(name, 0) + count
    return found
