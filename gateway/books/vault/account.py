"""One account of a vault, and the gateways that lease of it: the arithmetic that `exchange.lua` does in Redis.

Values in, values out; the engines on this machine keep them in memory or in SQLite. `tests/contracts` plays the same
exchanges on all engines. Times are whole milliseconds, unix.
"""

from collections.abc import Sequence

from msgspec import Struct, field

from gateway.books.ledger.contract import Place
from gateway.books.ledger.tables import NAMED_S_MAX, WINDOW_S_MAX
from gateway.books.vault.contract import LEASE_S, Claim, Closed, Fenced, Gateway, Given, Refusal, Stale, Standing
from guards.escrow import AMOUNT_MAX, given
from guards.scope import AGENT, SESSION

LEASE_MS = round(LEASE_S * 1000)
WANTED_MS = 2000  # for so long others hear that a gateway could not be given what it needs; it asks again sooner
GATEWAYS_MAX = 256  # that lease under one tag: each exchange looks at all of them
CLAIMS_MAX = 1024  # in one exchange


class Speaker(Struct):
    """A gateway as a vault has heard it last. fenced: written off, for good."""

    epoch: int
    number: int
    heard_ms: int
    fenced: bool = False

    def lives(self, now_ms: int) -> bool:
        """Whether it was heard of within LEASE_S."""
        return now_ms - self.heard_ms <= LEASE_MS and not self.fenced


class Tag(Struct):
    """What accounts under one tag have in common. run: which start of which server it has been kept by so far;
    quiet_ms: until then no rights are given."""

    run: str
    quiet_ms: int = 0
    gateways: dict[str, Speaker] = field(default_factory=dict)

    def hear(self, gateway: Gateway, run: str, now_ms: int) -> Refusal | None:
        """Take note of who speaks, or say why not; then nothing has changed."""
        known = self.gateways.get(gateway.name)
        if known is not None:
            if known.fenced or gateway.epoch < known.epoch:
                return fenced(gateway.name)
            if gateway.epoch == known.epoch and gateway.number <= known.number:
                return stale()
        elif sum(not one.fenced for one in self.gateways.values()) >= GATEWAYS_MAX:
            return crowded()
        if run != self.run:
            self.run, self.quiet_ms = run, max(self.quiet_ms, now_ms + LEASE_MS)
        self.gateways[gateway.name] = Speaker(gateway.epoch, gateway.number, now_ms)
        return None

    def living(self, now_ms: int) -> set[str]:
        """Who was heard of within LEASE_S."""
        return {name for name, one in self.gateways.items() if one.lives(now_ms)}


class Account(Struct):
    """What gateways have of one budget. shares: rights and spent, by gateway; off: written off, spent by nobody living.

    limit: AMOUNT_MAX where there is none. wanter: who could not be given what it needs, and when that was.
    """

    limit: int = AMOUNT_MAX
    as_of: float = 0.0
    off: int = 0
    wanter: str = ""
    wanted_ms: int = 0
    shares: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """Of the limit, what nobody has leased; a gateway that says that it spent more than it has, has that."""
        return self.limit - self.off - sum(max(share) for share in self.shares.values())

    def claim(self, name: str, said: Claim, living: set[str], quiet: bool, now_ms: int) -> Given:
        """Take in what a gateway says, and give it rights where it is not quiet."""
        if said.as_of >= self.as_of:
            self.limit, self.as_of = bound(said.limit), said.as_of
        self.shares[name] = (said.rights, said.spent)
        others = sum(max(0, has - used) for one, (has, used) in self.shares.items() if one != name and one in living)
        wanted = self.wanter not in ("", name) and now_ms - self.wanted_ms <= WANTED_MS
        more = 0
        if not quiet:
            # While somebody lacks what it needs, nobody is given more than that.
            more = given(self.free, len(living), 0 if wanted else said.want, said.need)
            if more < said.need:
                self.wanter, self.wanted_ms = name, now_ms
            elif self.wanter == name:
                self.wanter = ""
        free = self.free - more
        self.shares[name] = (said.rights + more, said.spent)
        if self.shares[name] == (0, 0):
            del self.shares[name]
        return Given(said.rights + more, free, others, wanted)

    def write_off(self, name: str) -> bool:
        """Charge all that a gateway has; whether it had any."""
        share = self.shares.pop(name, None)
        self.off += max(share or (0,))
        return share is not None

    def standing(self, place: Place, living: set[str]) -> Standing:
        """How it stands, over all gateways."""
        left = {name: max(0, has - used) for name, (has, used) in self.shares.items()}
        return Standing(
            place,
            None if self.limit == AMOUNT_MAX else self.limit,
            self.off + sum(used for _, used in self.shares.values()),
            sum(left.values()),
            sum(amount for name, amount in left.items() if name not in living),
        )


def bound(limit: int | None) -> int:
    """A limit as it is kept; one that nothing can reach is none."""
    return AMOUNT_MAX if limit is None else min(limit, AMOUNT_MAX)


def checked(claims: Sequence[Claim]) -> list[Claim]:
    """Claims that an exchange can take. Raises ValueError where there are too many, or their amounts are too high.

    What is wanted is never more than a limit can be; what is said of rights has to be exact.
    """
    if len(claims) > CLAIMS_MAX:
        raise ValueError(f"{len(claims)} claims at once; at most {CLAIMS_MAX}")
    for one in claims:
        if not (0 <= one.rights <= AMOUNT_MAX and 0 <= one.spent <= AMOUNT_MAX and one.want >= 0 and one.need >= 0):
            raise ValueError(f"amounts are from 0 to {AMOUNT_MAX}: {one}")
    return [one._replace(want=min(one.want, AMOUNT_MAX), need=min(one.need, AMOUNT_MAX)) for one in claims]


def lasts_s(place: Place) -> int:
    """For how long an account is kept after it was touched last, in seconds; 0 for good. As in the embedded ledger."""
    if place.scope.startswith((f"{SESSION}:", f"{AGENT}:")):
        return round(NAMED_S_MAX)
    return 0 if place.window == "total" else round(WINDOW_S_MAX)


def stale() -> Stale:
    return Stale("a newer exchange of this gateway came first")


def fenced(name: str) -> Fenced:
    return Fenced(f"{name} was started anew elsewhere, or written off")


def crowded() -> Refusal:
    return Refusal(
        f"more than {GATEWAYS_MAX} gateways: write off those that are gone, with `holdfast ledger write-off`"
    )


def empty() -> Closed:
    return Closed("the ledger is empty: if it is new, say so with `holdfast ledger begin`")


def lost(tag: str) -> Closed:
    return Closed(f"the ledger has lost its accounts of {tag}: see `holdfast ledger begin --again`")
