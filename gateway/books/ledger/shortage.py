"""What a gateway does where its rights lack: what it wishes to have, and what clients are told where it may not."""

from gateway.books.ledger.contract import Place
from gateway.books.ledger.lease import Lease, Wish
from gateway.books.ledger.leased_steps import Short
from guards.budget import UNLIMITED
from guards.claim import Load, shares
from guards.refusal import Reason, Refused

AGAIN_S = 1.0  # a client's next try


def wishes(short: Short, want: Load) -> dict[Place, Wish]:
    """What is to be free of each limit for a step that was short."""
    found = {}
    needs, wants = shares(short.need, short.price), shares(want, short.price)
    for at, (unit, account, held) in zip(short.places, short.mine, strict=True):
        if account.limit != UNLIMITED:
            need = max(0, needs[unit] - held)
            found[at] = Wish(need, max(need, wants[unit] - held), need)
    return found


def unavailable(lease: Lease) -> Refused:
    """For clients: not why."""
    what = "this gateway may not spend it" if lease.fault else "it cannot be asked for"
    return Refused(Reason.BOOKS, f"the budget is shared by many gateways, and {what} right now", retry_after_s=AGAIN_S)
