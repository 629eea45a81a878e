"""How a stream may go on at another replica, and which replica is the best for that. Pure.

By replay a replica gets the whole request again with the tokens that the client has, and takes them for its own
output: state beyond ids (grammar, penalties, noise, parsers) is as it was. By ids it gets prompt and tokens as a new
prompt, and only what is a function of those goes on exactly.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

PROTOCOL = 1  # of replays, as both sides speak it


class Way(StrEnum):
    """How. A metric label."""

    REPLAY = "replay"
    IDS = "ids"


class Continues(NamedTuple):
    """What a replica continues by replay, as its plugin says.

    seeds: also noise that was drawn with a seed. refused: fields of requests that it cannot continue exactly.
    """

    seeds: bool = False
    refused: frozenset[str] = frozenset()


def together(said: Iterable[Continues | None]) -> Continues | None:
    """What engines behind one address continue, whichever of them is asked; None where one continues none."""
    known = list(said)
    if not known or None in known:
        return None
    ones = [one for one in known if one is not None]
    return Continues(all(one.seeds for one in ones), frozenset().union(*(one.refused for one in ones)))


def by_ids(continues: Continues | None) -> Way:
    """How a stream goes on that can from its ids alone, wherever."""
    return Way.IDS
