"""The fingerprint of one rank, and what is made of several: of an engine, of a request with an adapter."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from vllm_plugin.fingerprint.binding import FINGERPRINT_BYTES, bound
from vllm_plugin.fingerprint.facts import packed
from vllm_plugin.fingerprint.reading import Reading


class FingerprintRefused(ValueError):
    """Ranks that are not those of one engine; says which, and in what they differ."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What one rank's pages are of. A value: it is pickled, compared, and sent to the scheduler's half.

    rank, ranks: which of how many workers of the engine. sections: of facts, each with its digest, in order of names.
    weights: over this rank's weights.
    """

    rank: int
    ranks: int
    sections: tuple[tuple[str, bytes], ...]
    weights: bytes

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.ranks, "a rank is one of the engine's"
        assert len(self.weights) == FINGERPRINT_BYTES

    @classmethod
    def of(cls, facts: Mapping[str, Any], reading: Reading, *, rank: int = 0, ranks: int = 1) -> Self:
        """The fingerprint of a rank. facts: by section, alike on all ranks. Raises FactRefused."""
        sections = ((name, bound("section", packed(facts[name], name))) for name in sorted(facts))
        return cls(rank, ranks, tuple(sections), reading.digest)

    @property
    def common(self) -> bytes:
        """What all ranks of an engine have alike: all but the weights. 32 bytes."""
        fields = [field for name, digest in self.sections for field in (name.encode(), digest)]
        return bound("common", str(self.ranks).encode(), *fields)

    @property
    def shard(self) -> bytes:
        """What this rank's pages are of: common part, rank, weights. 32 bytes, for `Header`."""
        return bound("shard", self.common, str(self.rank).encode(), self.weights)

    def differs(self, other: "Fingerprint") -> list[str]:
        """The names of what is not alike in both: sections, "rank", "ranks", "weights"."""
        mine, its = dict(self.sections), dict(other.sections)
        found = [name for name in sorted({*mine, *its}) if mine.get(name) != its.get(name)]
        return found + [name for name in ("rank", "ranks", "weights") if getattr(self, name) != getattr(other, name)]


def engine_of(fingerprints: Iterable[Fingerprint]) -> bytes:
    """The fingerprint of an engine, from those of all its ranks, in whatever order they come. 32 bytes.

    Raises FingerprintRefused when a rank is missing, or there twice and not alike, or of another engine.
    """
    shards: dict[int, Fingerprint] = {}
    for one in fingerprints:
        if shards.setdefault(one.rank, one) != one:
            raise FingerprintRefused(f"rank {one.rank} is two: {', '.join(one.differs(shards[one.rank]))} differ")
    ranks = max((one.ranks for one in shards.values()), default=0)
    if missing := [str(rank) for rank in range(max(1, ranks)) if rank not in shards]:
        raise FingerprintRefused(f"of {ranks} ranks there is no {', '.join(missing)}")
    for one in shards.values():
        if one.common != shards[0].common:
            differ = [name for name in one.differs(shards[0]) if name not in ("rank", "weights")]
            raise FingerprintRefused(f"ranks 0 and {one.rank} are not of one engine: {', '.join(differ)} differ")
    return bound("engine", shards[0].common, *(shards[rank].shard for rank in range(ranks)))


def adapter_of(adapters: Mapping[int, bytes], ranks: int) -> bytes:
    """The fingerprint of an adapter on all of an engine's ranks, by rank, from `adapter_contents`. 32 bytes.

    Raises FingerprintRefused when a rank is missing.
    """
    if missing := [str(rank) for rank in range(ranks) if rank not in adapters]:
        raise FingerprintRefused(f"the adapter of rank {', '.join(missing)} is not known")
    return bound("adapter of all ranks", *(adapters[rank] for rank in range(ranks)))


def request_of(base: bytes, adapter: bytes | None = None) -> bytes:
    """What a request's pages are of: the engine's or shard's fingerprint, with its adapter's where it has one.

    Which other adapters are loaded does not matter to it. Of an adapter that no rank has reported yet no page is known
    to be right: such a request uses none, and leaves none.
    """
    return base if adapter is None else bound("request", base, adapter)
