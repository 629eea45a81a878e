"""One account of a vault, and the gateways that lease of it: the arithmetic that `exchange.lua` does in Redis.

Values in, values out; the engines on this machine keep them in memory or in SQLite. `tests/contracts` plays the same
exchanges on all engines. Times are whole milliseconds, unix.
"""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct, field

from gateway.books.ledger.contract import Place
from gateway.books.ledger.tables import NAMED_S_MAX, WINDOW_S_MAX
from gateway.books.vault.contract import (
    LEASE_S,
    Claim,
    Closed,
    Crowded,
    Fenced,
    Gateway,
    Given,
    Refusal,
    Stale,
    Standing,
)
from guards.escrow import AMOUNT_MAX, given
from guards.scope import made_up

LEASE_MS = round(LEASE_S * 1000)
WANTED_MS = 2000  # for so long others hear that a gateway could not be given what it needs; it asks again sooner
GATEWAYS_MAX = 512  # that lease under one tag: each exchange looks at all of them, in 3 ms of a server
CLAIMS_MAX = 1024  # in one exchange
FENCED_MS = round(WINDOW_S_MAX * 1000)  # after so long one that was written off is forgotten


class Speaker(Struct):
    """A gateway as a vault has heard it last. fenced: written off, for good, and that at `heard_ms`."""

    epoch: int
    number: int
    heard_ms: int
    fenced: bool = False
    start: str = ""

    def lives(self, now_ms: int) -> bool:
        """Whether it was heard of within LEASE_S."""
        return now_ms - self.heard_ms <= LEASE_MS and not self.fenced

    def gone(self, now_ms: int) -> bool:
        """Whether it was written off so long ago that the fence is forgotten: see `Vault.write_off`."""
        return self.fenced and now_ms - self.heard_ms > FENCED_MS


class Tag(Struct):
    """What accounts under one tag have in common. run: which start of which server it has been kept by so far;
    quiet_ms: until then no rights are given."""

    run: str
    quiet_ms: int = 0
    gateways: dict[str, Speaker] = field(default_factory=dict)

    def refuses(self, gateway: Gateway, now_ms: int) -> Refusal | None:
        """Why a gateway may not speak."""
        known = self.gateways.get(gateway.name)
        if known is not None and not known.gone(now_ms):
            if known.fenced or gateway.epoch < known.epoch:
                return fenced(gateway.name)
            if gateway.epoch == known.epoch and gateway.start != known.start:
                return fenced(gateway.name)
            if gateway.epoch == known.epoch and gateway.number <= known.number:
                return stale()
        elif sum(not one.fenced for one in self.gateways.values()) >= GATEWAYS_MAX:
            return crowded()
        return None

    def hear(self, gateway: Gateway, run: str, now_ms: int) -> None:
        """Take note of who speaks, and forget who was written off long ago."""
        if run != self.run:
            self.run, self.quiet_ms = run, max(self.quiet_ms, now_ms + LEASE_MS)
        self.gateways = {name: one for name, one in self.gateways.items() if not one.gone(now_ms)}
        self.gateways[gateway.name] = Speaker(gateway.epoch, gateway.number, now_ms, start=gateway.start)

    def living(self, now_ms: int) -> set[str]:
        """Who was heard of within LEASE_S."""
        return {name for name, one in self.gateways.items() if one.lives(now_ms)}


class Share(NamedTuple):
    """What a gateway has of an account, by its last word."""

    rights: int
    spent: int
    corrected: int

    @property
    def most(self) -> int:
        """What is not free; a gateway that says that it spent more than it has, has that."""
        return max(self.rights, self.spent)

    @property
    def left(self) -> int:
        """What may be given back."""
        return max(0, self.rights - self.spent)


class Account(Struct):
    """What gateways have of one budget. off: written off, spent by nobody living.

    limit: AMOUNT_MAX where there is none. wanter: who could not be given what it needs, and when that was.
    """

    limit: int = AMOUNT_MAX
    as_of: float = 0.0
    off: int = 0
    wanter: str = ""
    wanted_ms: int = 0
    shares: dict[str, Share] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """Of the limit, what nobody has leased."""
        return self.limit - self.off - sum(share.most for share in self.shares.values())

    def forgotten(self, name: str, said: Claim) -> bool:
        """Whether a gateway does not know any more what it has spent: its books are older than the vault's."""
        known, corrected = self.shares.get(name), counted(said)
        return known is not None and said.spent < known.spent and 0 <= corrected <= known.corrected

    def claim(self, name: str, said: Claim, living: set[str], quiet: bool, now_ms: int) -> Given:
        """Take in what a gateway says, and give it rights where it is not quiet."""
        if said.as_of >= self.as_of:
            self.limit, self.as_of = bound(said.limit), said.as_of
        self.shares[name] = share = Share(said.rights, said.spent, said.corrected)
        others = sum(other.left for one, other in self.shares.items() if one != name and one in living)
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
        self.shares[name] = share = share._replace(rights=said.rights + more)
        if not share.most:
            del self.shares[name]
        return Given(said.rights + more, free, others, wanted)

    def write_off(self, name: str) -> bool:
        """Charge all that a gateway has; whether it had any."""
        share = self.shares.pop(name, None)
        self.off += share.most if share else 0
        return share is not None

    def standing(self, place: Place, living: set[str]) -> Standing:
        """How it stands, over all gateways."""
        left = {name: share.left for name, share in self.shares.items()}
        return Standing(
            place,
            None if self.limit == AMOUNT_MAX else self.limit,
            self.off + sum(share.spent for share in self.shares.values()),
            sum(left.values()),
            sum(amount for name, amount in left.items() if name not in living),
        )


def bound(limit: int | None) -> int:
    """A limit as it is kept; one that nothing can reach is none."""
    return AMOUNT_MAX if limit is None else min(limit, AMOUNT_MAX)


def checked(claims: Sequence[Claim]) -> list[Claim]:
    """Claims that an exchange can take. Raises ValueError where there are too many, two of one account, or their
    amounts are too high.

    What is wanted is never more than a limit can be; what is said of rights has to be exact.
    """
    if len(claims) > CLAIMS_MAX:
        raise ValueError(f"{len(claims)} claims at once; at most {CLAIMS_MAX}")
    if len({one.place for one in claims}) < len(claims):
        raise ValueError("two claims of one account")
    for one in claims:
        said = one.rights, one.spent, one.corrected
        if not (min(said) >= 0 and max(said) <= AMOUNT_MAX and one.want >= 0 and one.need >= 0):
            raise ValueError(f"amounts are from 0 to {AMOUNT_MAX}: {one}")
    return [one._replace(want=min(one.want, AMOUNT_MAX), need=min(one.need, AMOUNT_MAX)) for one in claims]


def lasts_s(place: Place) -> int:
    """For how long an account is kept after it was touched last, in seconds; 0 for good. As in the embedded ledger."""
    if made_up(place.scope):
        return round(NAMED_S_MAX)
    return 0 if place.window == "total" else round(WINDOW_S_MAX)


def counted(said: Claim) -> int:
    """The corrections of a gateway's books; -1 where what is spent falls without: names that age go from its ledger."""
    return -1 if made_up(said.place.scope) else said.corrected


def stale() -> Stale:
    return Stale("a newer exchange of this gateway came first")


def fenced(name: str) -> Fenced:
    return Fenced(f"{name} was started anew elsewhere, or written off")


def forgetful(name: str) -> Fenced:
    return Fenced(
        f"{name} has spent more than it knows of: its data directory is an older copy. Write it off, with "
        "`holdfast ledger write-off`, and start it with another directory"
    )


def crowded() -> Crowded:
    return Crowded(
        f"more than {GATEWAYS_MAX} gateways: write off those that are gone, with `holdfast ledger write-off`"
    )


def empty() -> Closed:
    return Closed("the ledger is empty: if it is new, say so with `holdfast ledger begin`")


def lost(tag: str) -> Closed:
    return Closed(f"the ledger has lost its accounts of {tag}: see `holdfast ledger begin --again`")
