"""Requests that wait for the servers of one model, and could start if these had room: which of them is next. Pure.

By priority band, then the tenant that was served least, then the earliest deadline. Tenants compete within a band, so
each band has counters of its own: one that waits below would hold back the floor to which newcomers above are lifted.
Each depth of agents has a line of its own, since nobody may wait behind a request that is less deep (see `permits`).
"""

from collections.abc import Callable, Container

from guards.fairness import Tenant, Tenants
from guards.pace import Pace
from guards.place import BANDS, Place
from guards.ranking import Ranking

NEVER_S = float("-inf")


class Stand:
    """One tenant's requests in a line, the earliest deadline first. started_s: when one was started from here."""

    __slots__ = ("places", "started_s", "tenant")

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.started_s = NEVER_S
        self.places: Ranking[Place, float] = Ranking()


class Line:
    """The requests of one band and depth, by tenant.

    Counters grow while tenants wait. So a stand is ranked by what its tenant's was, and anew when it is in front; and
    so it is with the time since when it has waited unserved, by which it rises.
    """

    __slots__ = ("_above", "_below", "_order", "_stands")

    def __init__(self) -> None:
        self._stands: dict[Tenant, Stand] = {}
        self._order: Ranking[Stand, float] = Ranking()
        self._above: dict[Tenant, int] = {}  # of whom so many requests wait in the band above, having risen from here
        self._below: Ranking[Stand, float] = Ranking()  # of all others: one of a tenant's requests rises at a time

    def add(self, place: Place) -> None:
        """A request waits here."""
        tenant = place.tenant
        stand = self._stands.get(tenant)
        if stand is None:
            stand = self._stands[tenant] = Stand(tenant)
            self._rank(stand)
        stand.places.rank(place, place.due_s)

    def discard(self, place: Place) -> None:
        """It does not any more."""
        stand = self._stands[place.tenant]
        stand.places.discard(place)
        if not stand.places:
            del self._stands[place.tenant]
            self._order.discard(stand)
            self._below.discard(stand)

    def lowered(self, tenant: Tenant) -> None:
        """A tenant's counter fell: it was charged too much."""
        stand = self._stands.get(tenant)
        if stand is not None:
            self._rank(stand)

    def rose(self, tenant: Tenant) -> None:
        """A request of a tenant's waits in the band above."""
        self._above[tenant] = self._above.get(tenant, 0) + 1
        stand = self._stands.get(tenant)
        if stand is not None:
            self._below.discard(stand)

    def left(self, tenant: Tenant) -> None:
        """It does not any more."""
        self._above[tenant] -= 1
        if not self._above[tenant]:
            del self._above[tenant]
            self.lowered(tenant)

    def started(self, tenant: Tenant, now_s: float) -> None:
        """A request of a tenant's was started from here."""
        stand = self._stands.get(tenant)
        if stand is not None:
            stand.started_s = now_s

    def first(self) -> Place | None:
        """Whose turn it is."""
        stand = _first(self._order, served)
        return None if stand is None else stand.places.first()

    def rising(self, after_s: float) -> tuple[float, Place] | None:
        """When the next one may rise, and which it is: of the tenant that has waited unserved for the longest time.

        It, or its tenant, has then waited so long, and none was started from here for as long: who is served here,
        however late, does not starve.
        """
        stand = _first(self._below, since)
        place = None if stand is None else stand.places.first()
        if stand is None or place is None:
            return None
        return max(min(place.since_s, stand.tenant.since_s), stand.started_s) + after_s, place

    def _rank(self, stand: Stand) -> None:
        self._order.rank(stand, served(stand))
        if stand.tenant not in self._above:
            self._below.rank(stand, since(stand))


def _first(order: Ranking[Stand, float], key: Callable[[Stand], float]) -> Stand | None:
    while (stand := order.first()) is not None:
        if order.key(stand) == (now := key(stand)):
            return stand
        order.rank(stand, now)
    return None


def served(stand: Stand) -> float:
    """By what it is its turn to be served."""
    return stand.tenant.served


def since(stand: Stand) -> float:
    """By what it is its turn to rise."""
    return stand.tenant.since_s


class Band:
    """What waits in one band.

    ready: requests in lines; risen: those of them that came from the band below. work: tokens of all that wait, also of
    those that are parked at a gate. weights: of the tenants that have such, added up. below: the next band.
    """

    __slots__ = ("_lines", "below", "ready", "risen", "tenants", "weights", "work")

    def __init__(self, below: "Band | None") -> None:
        self.below = below
        self._lines: dict[int, Line] = {}  # by depth
        self.tenants = Tenants()
        self.ready = self.risen = self.work = 0
        self.weights = 0.0

    def tenant(self, name: str, weight: float) -> Tenant:
        """The tenant of a request that comes now."""
        return self.tenants.of(name, weight, self.least() if self.ready else None)

    def add(self, place: Place) -> None:
        """A request could start as soon as there is room."""
        tenant, depth = place.tenant, place.ask.depth
        if not tenant.ready:
            tenant.since_s = place.since_s
            self.tenants.lift(tenant, self.least())
        line = self._lines.get(depth)
        if line is None:
            line = self._lines[depth] = Line()
        line.add(place)
        tenant.ready += 1
        self.ready += 1
        if place.homes and self.below is not None:
            self.risen += 1
            self.below.rose(place)

    def discard(self, place: Place) -> None:
        """It starts, lacks a permit of its own, or ends."""
        self._lines[place.ask.depth].discard(place)
        place.tenant.ready -= 1
        self.ready -= 1
        if place.homes and self.below is not None:
            self.risen -= 1
            self.below.left(place)

    def rose(self, place: Place) -> None:
        """A request that waited here waits in the band above."""
        self._lines[place.ask.depth].rose(place.homes[-1][1])

    def left(self, place: Place) -> None:
        """It does not any more."""
        self._lines[place.ask.depth].left(place.homes[-1][1])

    def first(self, blocked: Container[int]) -> Place | None:
        """Whose turn it is, of those whose depth is not blocked."""
        heads = [line.first() for depth, line in self._lines.items() if depth not in blocked]
        return min(filter(None, heads), key=lambda place: (place.tenant.served, place.due_s), default=None)

    def rising(self, after_s: float) -> list[tuple[float, Place]]:
        """Who may rise next, of each depth, and when."""
        return [found for line in self._lines.values() if (found := line.rising(after_s)) is not None]

    def started(self, place: Place, now_s: float) -> None:
        """A request was started from here: its tenant waits unserved no more, nor where it has risen from."""
        for tenant in (place.tenant, *(home for _, home in place.homes)):
            tenant.since_s = now_s
        self._lines[place.ask.depth].started(place.tenant, now_s)

    def least(self) -> float | None:
        """The counter of the tenant that was served least of those that are ready."""
        head = self.first(())
        return None if head is None else head.tenant.served

    def lowered(self, tenant: Tenant) -> None:
        """A tenant's counter fell."""
        for line in self._lines.values():
            line.lowered(tenant)

    def begins(self, place: Place) -> None:
        """A request waits from now on, in a line or at a gate."""
        tenant = place.tenant
        if not tenant.work:
            self.weights += tenant.weight
        tenant.work += place.size
        self.work += place.size

    def ends(self, place: Place) -> None:
        """It does not any more."""
        tenant = place.tenant
        tenant.work -= place.size
        self.work -= place.size
        if not tenant.work:
            self.weights -= tenant.weight
        if not self.work:
            self.weights = 0.0


class Backlog:
    """All that waits for the servers of one model."""

    __slots__ = ("bands", "pace")

    def __init__(self) -> None:
        self.bands: list[Band] = []
        for _ in range(BANDS):
            self.bands.insert(0, Band(self.bands[0] if self.bands else None))
        self.pace = Pace()

    @property
    def ready(self) -> int:
        """Requests that could start as soon as there is room."""
        return sum([band.ready for band in self.bands])

    def first(self, blocked: Container[int]) -> Place | None:
        """Whose turn it is, of those whose depth is not blocked."""
        for band in self.bands:
            if band.ready and (place := band.first(blocked)) is not None:
                return place
        return None

    def rising(self, after_s: float) -> list[tuple[float, Place]]:
        """Who may rise next, of each band and depth, and when: once it has waited so long unserved."""
        return [found for band in self.bands[1:] if band.ready for found in band.rising(after_s)]

    def ahead(self, place: Place) -> float:
        """Tokens of work that will be taken up until a request which comes now is, and its own; about.

        All that is in higher bands. And in its own what its tenant has there already, while all others are served in
        turn with that, but no more than there is; with what is below, if that rises.
        """
        band, tenant = self.bands[place.band], place.tenant
        turns = (tenant.work + place.size) * max(1.0, band.weights / tenant.weight)
        above = sum(one.work for one in self.bands[: place.band])
        below = sum(one.work for one in self.bands[place.band + 1 :]) if band.risen else 0
        return above + min(float(band.work + below + place.size), turns)
