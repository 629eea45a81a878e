"""What an order to correct the books says: whoever gives another one under the same id is told so."""

from collections.abc import Sequence
from hashlib import sha256

import msgspec

from gateway.books.ledger.contract import Correction, Place
from guards.budget import Window

REPRICED = "repriced"  # why, in what a repricing is about

_KINDS = {len(window.id_at(0)): window.value for window in Window}  # of windows, by how long their names are
_encode = msgspec.json.Encoder(order="sorted").encode


class OtherOrder(ValueError):
    """An id was given to one order before, and now to another, of which nothing was done."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the id {name!r} was used for another order, so nothing was done")


def digest_of(corrections: Sequence[Correction]) -> str:
    """Digest what is ordered, whoever orders it: hex.

    A reset is of the window of its moment: said again when that is over it is the same order, and was made before.
    A repricing is of models, prices and the first fact: what it comes to, and the last fact, grow with the journal.
    """
    return sha256(_encode([_said(one) for one in corrections])).hexdigest()


def same(known: str | None, corrections: Sequence[Correction], name: str) -> bool:
    """Whether an order was made before. known: the digest that is kept under its name; "" of one that an older
    Holdfast made, which may be any; None where there is none.

    Raises OtherOrder where that was another one.
    """
    if known and known != digest_of(corrections):
        raise OtherOrder(name)
    return known is not None


def _said(one: Correction) -> object:
    if one.about.get("why") == REPRICED:
        return [], {name: value for name, value in one.about.items() if name not in ("by", "last")}
    return (
        [(at if amount is not None else _at_any_time(at), amount) for at, amount in one.charges],
        {name: value for name, value in one.about.items() if name != "by"},
    )


def _at_any_time(at: Place) -> Place:
    return at._replace(window=_KINDS.get(len(at.window), at.window))
