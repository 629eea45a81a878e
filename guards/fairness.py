"""Fairness between tenants by virtual token counters: whoever was served least is next. Pure.

Sheng et al., «Fairness in Serving Large Language Models» (arXiv 2401.00588), algorithm 2. Every tenant has a counter of
the tokens it was served: its input when a request is dispatched, its output as it is delivered, since nobody knows
before how long an answer gets. Two tenants that both wait all the while are served the same but for

    2 * max(INPUT * longest input, OUTPUT * tokens that a server holds)

and neither ever waits while a server has room. A tenant that comes back from a rest is lifted to those that wait, so
that nobody saves up credit while idle and shuts out all others later.
"""

INPUT, OUTPUT = 1, 2  # what a token weighs
TENANTS_KEPT = 1024  # that have nothing here any more; those in use are bounded by who lets them in


class Tenant:
    """One tenant's counter, among those of one band at the servers of one model.

    served: weighted tokens, over its weight; lifted where it rested.
    ready: requests that could start as soon as there is room. held: those that are known at all, also those that run.
    work: tokens that its waiting requests will take. since_s: from when on one was ready, and none was started.
    """

    __slots__ = ("held", "name", "ready", "served", "since_s", "weight", "work")

    def __init__(self, name: str, weight: float, served: float) -> None:
        self.name, self.weight, self.served = name, weight, served
        self.ready = self.held = self.work = 0
        self.since_s = 0.0

    def charge(self, tokens: int) -> None:
        """It was served so many weighted tokens more; below 0: it was charged too many."""
        self.served += tokens / self.weight


class Tenants:
    """The counters of tenants that compete. kept: so many with nothing here are remembered at most.

    last: whose request was sent to a server last; to be set.
    """

    __slots__ = ("_floor", "_kept", "_known", "_sweep_at", "last")

    def __init__(self, kept: int = TENANTS_KEPT) -> None:
        self._kept = self._sweep_at = kept
        self._known: dict[str, Tenant] = {}
        self.last: Tenant | None = None
        self._floor = 0.0

    def __len__(self) -> int:
        return len(self._known)

    def of(self, name: str, weight: float, least: float | None) -> Tenant:
        """A tenant by its name, as of a request that comes now. least: see `floor`.

        One that has no request ready to start is lifted: it was idle, or held back by a limit of its own.
        """
        tenant = self._known.get(name)
        if tenant is None:
            if len(self._known) >= self._sweep_at:
                self._forget()
            tenant = self._known[name] = Tenant(name, weight, 0.0)
        if not tenant.held:
            tenant.weight = weight
        # Else nothing is learnt of the floor: what it was charged for a moment, and given back, must not raise it.
        at_floor = tenant is self.last and least is None and tenant.served >= self._floor
        if not (at_floor or tenant.ready):
            self.lift(tenant, least)
        return tenant

    def look(self, name: str, weight: float) -> Tenant:
        """The same for a request that may not come: as it stands, or one that nobody remembers. Changes nothing."""
        known = self._known.get(name)
        return known if known is not None and known.held else Tenant(name, weight, 0.0)

    def lift(self, tenant: Tenant, least: float | None) -> None:
        """Give it no credit for a time in which it did not wait."""
        floor = self.floor(least)
        if tenant.served < floor:
            tenant.served = floor

    def floor(self, least: float | None) -> float:
        """Where who comes back begins.

        least: the counter of the one that was served least of those that wait; None where nobody does.
        It never falls, so a counter below it says nothing that matters.
        """
        if least is None:
            least = 0.0 if self.last is None else self.last.served
        if least > self._floor:
            self._floor = least
        return self._floor

    def _forget(self) -> None:
        """Let go of tenants with nothing here, but of those with the highest counters, half as many as may stay.

        Whoever is not above the floor would be lifted to it anyway; and where more are above it than may stay, the ones
        go that are so by the least. By half, so that not every new tenant costs a sweep.
        """
        rest = sorted((one for one in self._known.values() if not one.held), key=lambda one: one.served, reverse=True)
        used = [one for one in self._known.values() if one.held]
        self._known = {one.name: one for one in (*used, *rest[: self._kept // 2])}
        self._sweep_at = max(self._kept, 2 * len(self._known))
