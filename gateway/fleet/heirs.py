"""Who may take over a stream: only replicas that are like those that brought of it what the client has."""

from collections.abc import Callable, Iterable, Sequence

from gateway.fleet.replica import Replica
from guards import routing
from guards.continuing import Continues, Way
from guards.kinship import Origin, between, same_model
from guards.routing import Slack


def heir(
    family: Sequence[Replica],
    model: str,
    origins: Sequence[Origin],
    avoid: frozenset[str],
    missing: frozenset[str],
    near: int | None,
    slack: Slack,
    now_s: float,
    way: Callable[[Continues | None], Way | None],
    home: str | None = None,
) -> str | None:
    """Name the replica that a stream goes on at; None when there is none that may take it. See `guards.routing.pick`.

    origins: whom it came from. Who differs from one of them may not; of equals one of the same fingerprint is
        preferred, and then one where it is replayed.
    way: how it goes on where so much is continued by replay; None: not exactly, and so not there.
    missing: those of `avoid` where nobody was. They are tried again only where all are alike, and all could take it:
        else it is better to say that those who are left cannot.
    """
    kin = [one for one in family if not between(origins, one.like(model, now_s))]
    known = []
    for one in kin:
        if (how := way(one.continues(now_s))) is not None:
            other = 2 * (same_model(origins, one.fingerprints) is False) + (how is not Way.REPLAY)
            known.append(one.candidate(model, now_s)._replace(other=other))
    there = [one for one in known if one.name not in missing]
    found = routing.pick(there, avoid, near, slack, home=home)
    if found is None and len(known) == len(family):
        found = routing.pick(known, avoid, near, slack, home=home)
    return found


def strangers(
    family: Iterable[Replica], model: str, origins: Sequence[Origin], now_s: float
) -> dict[str, tuple[str, ...]]:
    """Those that may not take over a stream that comes from there, and in what they differ from whom it comes from."""
    found = {one.name: between(origins, one.like(model, now_s)) for one in family}
    return {name: what for name, what in found.items() if what}
