"""What the two halves say of pages to each other, once a step: small frozen values. Pure.

    Orders   scheduler → worker: what to forget, to seal, to check, and who holds what
    Report   worker → scheduler: what was found
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from vllm_plugin.whose import NOBODY, Whose


class Page(NamedTuple):
    """A page as the scheduler names it: what must be in a block, if that block is to be read.

    block: its number. generation: how often that block was given out; a verdict on an earlier one says nothing.
    group: of the KV cache. chain: the hash of its tokens and of all before them. position: of its first token.
    """

    block: int
    generation: int
    group: int
    chain: bytes
    position: int


class Kind(StrEnum):
    """What is wrong with a page; a metric label."""

    ABSENT = "absent"  # never sealed, or forgotten since: nobody can say what it was
    MISPLACED = "misplaced"  # intact, but of other tokens, of another place, or of another request
    CHANGED = "changed"  # not what it was when it was written


class Where(StrEnum):
    """Who found it; a metric label."""

    GATE = "gate"
    SCRUB = "scrub"
    TAIL = "tail"
    LOAD = "load"
    BROUGHT = "brought"  # by another connector


class Lost(NamedTuple):
    """A page that must not be read. good_step: the last step after which it was seen intact, -1 if there is none."""

    page: Page
    kind: Kind
    where: Where
    good_step: int

    @property
    def spoils(self) -> bool:
        """Whether anybody may have read it while it was bad. Of an absent page nobody knows anything bad, and whoever
        holds it was let through, but for one that another connector brought; a page that could not be loaded was never
        there, and is computed.
        """
        return self.where == Where.BROUGHT or (self.kind != Kind.ABSENT and self.where != Where.LOAD)


class Tail(NamedTuple):
    """The page that a request is filling, as it is when the step is over; its chain is not known yet, and empty."""

    request_id: str
    page: Page


class Load(NamedTuple):
    """Pages that a request waits for, in order, and the chain of the page before the first one. whose: it is."""

    request_id: str
    pages: tuple[Page, ...]
    parent: bytes
    whose: Whose = NOBODY


@dataclass(frozen=True, slots=True)
class Orders:
    """For one step. Before the forward pass: forget, hold, release, rewind. After it: load, seal, then check.

    forget: blocks given out anew, or withdrawn; withdraw: those of them that may have been computed from a bad page, so
    that no store must have them either. hold: (request, blocks) that it holds from now on besides those before;
    release: requests that hold nothing any more. rewind: requests whose last sampled token was thrown away.
    tails: of the step's requests, while they are not full. unstored: blocks of `seal` whose pages no store gets.
    whose: by block of `seal`, whose page it is to the store, where somebody said so.
    reread: the weights may be others now, and are to be read before anything else.
    brought: what requests that were admitted now read, where another connector brought some of it. remember: whether
    digests are kept when their blocks are given out anew, as other connectors may bring those pages back. computes:
    whether anything is computed in this step.
    """

    step: int
    forget: tuple[int, ...] = ()
    hold: tuple[tuple[str, tuple[int, ...]], ...] = ()
    release: tuple[str, ...] = ()
    rewind: tuple[str, ...] = ()
    tails: tuple[Tail, ...] = ()
    seal: tuple[Page, ...] = ()
    check: tuple[Page, ...] = ()
    load: tuple[Load, ...] = ()
    withdraw: tuple[int, ...] = ()
    unstored: frozenset[int] = frozenset()
    whose: Mapping[int, Whose] = field(default_factory=dict)
    reread: bool = False
    brought: tuple[Page, ...] = ()
    remember: bool = False
    computes: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Of one worker and one step, or of all workers.

    model: the fingerprint of what it was computed with; settled: whether that is whole, and may be stored.
    void: no page of before is this model's. mixed_since: the step since which that may be so, where it was found late.
    """

    step: int
    model: bytes
    intact: frozenset[Page] = frozenset()
    lost: tuple[Lost, ...] = ()
    loaded: frozenset[Page] = frozenset()
    settled: bool = True
    void: bool = False
    mixed_since: int | None = None

    def merged(self, other: "Report") -> "Report":
        """What two workers found together: a page is intact only where all its shards are, and bad wins."""
        model = self.model if self.model == other.model else self.model + other.model
        lost = dict.fromkeys(self.lost + other.lost)
        since = [one for one in (self.mixed_since, other.mixed_since) if one is not None]
        return Report(
            self.step, model, self.intact & other.intact, tuple(lost), self.loaded & other.loaded,
            self.settled and other.settled, self.void or other.void, min(since, default=None),
        )  # fmt: skip
