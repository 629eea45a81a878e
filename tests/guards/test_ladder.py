"""What becomes of a request that servers are too busy for."""

import pytest

from guards.ladder import EASED, Rung, Step, eased, rungs
from guards.refusal import Reason, Refused

SHORTER, CHEAPER = Step.SHORTER, Step.CHEAPER
BUSY = Refused(Reason.OVERLOADED, "busy")


def ways(*order, instead=("mid", "small"), long=True):
    return [*rungs(order, "big", instead, long=long)]


@pytest.mark.parametrize("order", [(SHORTER, CHEAPER), (CHEAPER, SHORTER)])
def test_each_step_alone_as_configured_and_all_together_at_last(order):
    """The best model that answers in its stead before a worse one."""
    alone = {SHORTER: [Rung("big", (SHORTER,))], CHEAPER: [Rung("mid", (CHEAPER,)), Rung("small", (CHEAPER,))]}

    assert ways(*order) == [*alone[order[0]], *alone[order[1]], Rung("mid", order), Rung("small", order)]


def test_what_nobody_configured_is_no_way():
    """Nor is a step that would change nothing: a short answer, a model in whose stead none answers."""
    assert ways() == []
    assert ways(SHORTER) == [Rung("big", (SHORTER,))]
    assert ways(CHEAPER) == [Rung("mid", (CHEAPER,)), Rung("small", (CHEAPER,))]
    assert ways(SHORTER, CHEAPER, long=False) == ways(CHEAPER)
    assert ways(SHORTER, CHEAPER, instead=()) == ways(SHORTER)
    assert ways(CHEAPER, SHORTER, instead=(), long=False) == []


def test_the_first_way_in_is_taken():
    """And none after it is looked at."""
    looked = []

    def foresee(way):
        looked.append(way)
        return None if way.model == "mid" else BUSY

    assert eased(iter(ways(SHORTER, CHEAPER)), BUSY, foresee) == Rung("mid", (CHEAPER,))
    assert looked == ways(SHORTER, CHEAPER)[:2]


def test_where_nothing_helps_it_stays_as_it_is():
    """To be refused for what it is."""
    assert eased(iter(ways(SHORTER, CHEAPER)), BUSY, lambda way: BUSY) is None


@pytest.mark.parametrize("reason", [None, *(one for one in Reason if one not in EASED)])
def test_nobody_else_is_made_worse(reason):
    """Who is let in, or refused for what is no question of how busy servers are."""
    why = None if reason is None else Refused(reason, "")

    assert eased(iter(ways(SHORTER, CHEAPER)), why, lambda way: None) is None
