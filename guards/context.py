"""Whether a prompt fits its model, and which turns of a conversation may be left out. Pure."""

from collections.abc import Sequence

NEAR = 0.9  # of the limit: from here on the client is told
SPARE = 0.1  # of the limit: left free by who drops turns, so that the next turn need not do it again
KEPT_ROLES = ("system", "developer")


def near(tokens: int, limit: int) -> bool:
    """Whether so long a prompt is near to the limit, or beyond it."""
    return tokens >= NEAR * limit


def room(max_tokens: int | None, limit: int) -> int:
    """What an answer needs beside its prompt: one token at least, and never more than half."""
    return max(1, min(max_tokens or 1, limit // 2))


def excess(tokens: int, max_tokens: int | None, limit: int) -> int:
    """How many tokens of a prompt have to go, where it and its answer do not fit; 0 where they do."""
    needed = room(max_tokens, limit)
    return max(0, tokens + max(needed, int(SPARE * limit)) - limit) if tokens + needed > limit else 0


def turns(roles: Sequence[str | None]) -> list[list[int]]:
    """The turns of a conversation, the oldest first, as the places of their messages.

    A turn is what a user says, in one message or several, and all that follows: so no tool's result is in another one
    than its call. What precedes the first user's message is a turn too. System messages are in none.
    """
    found: list[list[int]] = []
    before: str | None = "user"  # such that the first message begins a turn only by `not found`
    for place, role in enumerate(roles):
        if role in KEPT_ROLES:
            continue
        if not found or (role == "user" and before != "user"):
            found.append([])
        found[-1].append(place)
        before = role
    return found


def to_drop(droppable: Sequence[Sequence[int]], sizes: Sequence[int], tokens: int, too_many: int) -> int:
    """How many of the oldest turns to drop, so that about so many tokens go; at least one, and all if need be.

    sizes: of all messages, in any unit, which together are `tokens`.
    """
    each = tokens / max(1, sum(sizes))
    gone = 0.0
    for number, turn in enumerate(droppable, 1):
        gone += each * sum(sizes[place] for place in turn)
        if gone >= too_many:
            return number
    return len(droppable)
