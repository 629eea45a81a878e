"""Which replicas of one model are alike enough that a stream may go on from one to the other. Pure.

The ids that a client has are of one tokenizer, its prompt is of one chat template, and what it left out was filled in
by one server's sampling defaults. Where these are others, the rest would be another answer's.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class Traits(NamedTuple):
    """What was found of a server, as digests; None where it cannot be found, which is held against nobody.

    template: of the chat template and the tokenizer below it. sampling: of what it takes for fields that are left out.
    model: its fingerprint, where streams are bound to one; UNTOLD where it is not known, which is held against all.
    """

    tokenizer: str | None = None
    template: str | None = None
    sampling: str | None = None
    model: str | None = None


class Origin(NamedTuple):
    """A server that brought tokens of a stream and was lost, as it was then. fingerprints: none where not known."""

    traits: Traits
    fingerprints: frozenset[str] = frozenset()


WORDS = {
    "tokenizer": "tokenizer", "template": "chat template", "sampling": "sampling defaults",
    "model": "fingerprint (weights, configuration or layout)", "untold": "fingerprint, or none that is known",
}  # fmt: skip
UNKNOWN = Traits()
UNTOLD = ""  # a fingerprint that is nobody's, not even that of another one who does not tell


def differences(one: Traits, other: Traits) -> tuple[str, ...]:
    """What is known of both and differs, in words; a template that differs as the tokenizer does is not named."""
    pairs = zip(Traits._fields, one, other, strict=True)
    found = [name for name, mine, its in pairs if mine is not None and its is not None and mine != its]
    if one.model is not None and other.model is not None and UNTOLD in (one.model, other.model):
        found = [*(name for name in found if name != "model"), "untold"]
    if "tokenizer" in found and "template" in found:
        found.remove("template")
    return tuple(WORDS[name] for name in found)


def apart(family: Sequence[tuple[str, Traits]]) -> dict[str, tuple[str, ...]]:
    """Of servers of one model, in the order they were declared in: who differs from most, and in what.

    Each trait has a majority of its own among those of whom it is known; of two as large that of the first declared.
    """
    most = Traits(*(_most([traits[at] for _, traits in family]) for at in range(len(Traits._fields))))
    found = {name: differences(traits, most) for name, traits in family}
    return {name: what for name, what in found.items() if what}


def between(origins: Sequence[Origin], traits: Traits) -> tuple[str, ...]:
    """What keeps a stream that came from there from going on at a server with these traits; nothing where it may."""
    return tuple(dict.fromkeys(word for origin in origins for word in differences(origin.traits, traits)))


def bond(fingerprints: frozenset[str]) -> str:
    """They as a trait, where streams are bound to them."""
    return ",".join(sorted(fingerprints)) or UNTOLD


def same_model(origins: Sequence[Origin], fingerprints: frozenset[str]) -> bool | None:
    """Whether the server that was lost last had these fingerprints; None where either's are not known."""
    before = origins[-1].fingerprints if origins else frozenset()
    return before == fingerprints if before and fingerprints else None


def _most(values: Sequence[str | None]) -> str | None:
    counted = Counter(value for value in values if value is not None)  # in the order of first sight
    return max(counted, key=counted.__getitem__, default=None)
