"""Who is told what becomes of replicas."""

from gateway.fleet.replica import Replica
from guards.breaker import Breaker


class Listener:
    """Told what becomes of replicas; this one does nothing with it."""

    def changed(self, replica: Replica) -> None:
        """The verdict is another: it came up, or went down."""

    def turned(self, replica: Replica, model: str, breaker: Breaker) -> None:
        """A breaker came into another state."""

    def gauged(self, replica: Replica) -> None:
        """It said how it is."""

    def compared(self, replica: Replica) -> None:
        """It is worse than the others of its model in other ways than before."""

    def drained(self, replica: Replica, why: str) -> None:
        """It gets no new requests any more, or does again: see `Inspector`."""

    def leaving(self, replica: Replica) -> None:
        """An operator drains it, or not any more."""

    def parted(self, replica: Replica, model: str) -> None:
        """It differs from the others of a model in other things than before: see `Kin`."""
