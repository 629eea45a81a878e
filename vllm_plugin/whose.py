"""Whose pages these are: what `kv_transfer_params` of a request say of its session. Pure.

    {"holdfast_session": "alice-7", "holdfast_generation": 2}

The generation is one larger with each move of the session to another engine: a page store refuses what is written for
it under a lower one. So an engine that was stopped while its session moved writes nothing into it when it goes on.
"""

import re
from typing import Any, NamedTuple

SESSION, GENERATION = "holdfast_session", "holdfast_generation"
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
GENERATION_MAX = 2**53 - 1  # of whoever counts in floating point, as Redis does


class Whose(NamedTuple):
    """session: its name; empty: nobody's in particular."""

    session: str = ""
    generation: int = 0


NOBODY = Whose()


class Refused(NamedTuple):
    """field: of `kv_transfer_params`, and what is wrong with it."""

    field: str
    why: str


def whose(params: Any) -> Whose:
    """What they say; nobody's, where they say nothing, or what cannot be."""
    if not isinstance(params, dict) or SESSION not in params or refused(params):
        return NOBODY
    return Whose(params[SESSION], params.get(GENERATION, 0))


def refused(params: Any) -> Refused | None:
    """What cannot be, of what they say; None where all of it can."""
    if not isinstance(params, dict):
        return None
    name, generation = params.get(SESSION), params.get(GENERATION, 0)
    if SESSION in params and not (isinstance(name, str) and NAME.fullmatch(name)):
        return Refused(SESSION, "write 1 to 64 letters, digits, or any of _.:-")
    if isinstance(generation, bool) or not isinstance(generation, int) or not 0 <= generation <= GENERATION_MAX:
        return Refused(GENERATION, f"write a whole number from 0 to {GENERATION_MAX}")
    if GENERATION in params and SESSION not in params:
        return Refused(GENERATION, f"it is that of a session: write {SESSION}, too")
    return None
