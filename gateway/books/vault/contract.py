"""What a vault promises, whichever engine keeps it.

Many gateways share every budget. None of them asks the vault before it spends: each spends *rights* that it leased
before, and keeps its own accounts of them (the Bounded Counter of Balegas et al., 2015). In each account:

    rights of all gateways + written off + free = limit,     each gateway: spent + held <= rights

A gateway is the authority on its own numbers. They are absolute, so saying them again changes nothing, and a vault
that forgot some (Redis replicates asynchronously) is told them at the next exchange. The vault alone gives more rights;
the gateway alone gives them back. So what a dead gateway may have spent is never given to another: its rights stay its
own until it is back and says what it spent of them, or an operator writes it off.

    exchanges are numbered      one that arrives late, after a newer one, is answered `Stale` and changes nothing
    gateways have epochs        a new start of a gateway has a higher one; the older one is answered `Fenced`, and so is
                                another start with the same one: it runs on a copy of the books
    spent only rises            but by corrections, which are counted; who says less than before has older books (they
                                were copied, or restored), does not know what it has spent, and is answered `Fenced`
    the vault has an epoch      another server, or another start of it, may have lost what it had answered: no rights
                                are given until LEASE_S have passed, in which all that live say theirs again
    an empty vault is closed    it is answered `Closed` until an operator says that it is to begin
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gateway.books.ledger.contract import Place

LEASE_S = 5.0  # for so long after it was asked for may rights be spent; on the gateway's own monotonic clock
RENEW_S = 1.0


class Gateway(NamedTuple):
    """Who speaks. name: of its data directory, for good; epoch: of its start; number: of its exchange of this tag.

    start: drawn at random at each; "" where nobody has copies of the books.
    """

    name: str
    epoch: int
    number: int
    start: str = ""


class Claim(NamedTuple):
    """What a gateway says of one account, and what it asks for.

    limit: the budget, as it knows it; None where the account only records. as_of: when that was set, unix seconds; 0
        for one that the configuration declares; below 0 where it is not known. The vault goes by the latest.
    rights: all that it has leased of the account so far, less what it gave back; spent: what of that is charged.
    want: so much more it would like to have; need: with less than that it can do nothing, and gets nothing.
    corrected: how many corrections its books have had; what is spent falls by them alone.
    Amounts are at most guards.escrow.AMOUNT_MAX, which a limit that is higher, or none, counts as.
    """

    place: Place
    limit: int | None
    as_of: float
    rights: int
    spent: int
    want: int = 0
    need: int = 0
    corrected: int = 0


class Standing(NamedTuple):
    """How an account stands, over all gateways. leased: rights that are not spent yet; lost: of those, what gateways
    hold that have not been heard of for LEASE_S, and count as charged."""

    place: Place
    limit: int | None
    spent: int
    leased: int
    lost: int


class Given(NamedTuple):
    """The answer to a claim. rights: what the gateway may spend in all from now on, never below what it said.

    free: of the limit, what nobody has leased; may be below 0 after a limit was lowered, or a vault was restored.
    others: rights that other gateways have not spent, and may give back; of those that were heard of within LEASE_S.
    wanted: somebody else could not be given what it needs, a moment ago: whoever has rights that it does not need
        gives them back. Until then nobody is given more than it needs.
    """

    rights: int
    free: int
    others: int
    wanted: bool


class Heard(NamedTuple):
    """A gateway, as a vault knows it. ago_s: since it was heard of last; fenced: it was written off, so long ago."""

    name: str
    ago_s: float
    fenced: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """No exchange: nothing has changed. why: for operators."""

    why: str


class Stale(Refusal):
    """A newer exchange of this gateway came first."""


class Crowded(Refusal):
    """So many gateways lease under this tag that no other one may: those that are gone have to be written off."""


class Fenced(Refusal):
    """A newer start of this gateway has spoken, or it was written off, or its books are older than what the vault has
    heard of them: this one may spend nothing any more."""


class Closed(Refusal):
    """The vault is empty, or not the one this gateway knows: an operator has to say what is true."""


class Exchange(NamedTuple):
    """given: an answer to each claim, in their order. quiet: no rights are given yet; ask again."""

    given: tuple[Given, ...]
    quiet: bool


class VaultDown(Exception):
    """It cannot be reached, or did not answer in time; whether it has heard the exchange is not known."""


class Vault(Protocol):
    """Keeps the rights of all gateways. Accounts are kept by *tag*: all that one request is under have the same one."""

    async def begin(self, *, again: bool = False) -> str:
        """Let an empty vault be used; its new name. For operators, not for gateways.

        again: after a loss, or after an older state was put back. What is there is kept, what is not may be made anew,
        and no rights are given until all that live have had the time to say theirs.

        Raises ValueError where it is in use already; VaultDown.
        """

    async def exchange(self, tag: str, gateway: Gateway, claims: Sequence[Claim], known: bool) -> Exchange | Refusal:
        """Take in what a gateway says of its accounts under a tag, and give it rights: one atomic step.

        known: the gateway has had rights under the tag before, so that one without accounts has lost them: Closed.
        Raises VaultDown within a bounded time; ValueError where there are too many claims, two of one account, or
        their amounts are no amounts (`account.checked`).
        """

    async def tags(self) -> list[str]:
        """All tags that accounts were ever made under. Raises VaultDown."""

    async def standings(self, tag: str) -> list[Standing]:
        """How all accounts under a tag stand, by place. Raises VaultDown."""

    async def heard(self, tag: str) -> list[Heard]:
        """The gateways that ever leased under a tag, by name. Raises VaultDown."""

    async def write_off(self, tag: str, name: str, unheard_s: float = 0.0) -> int | None:
        """Charge all rights that a gateway has under a tag, and fence it; in how many accounts. Raises VaultDown.

        None where it is not known there, or was heard of within `unheard_s`: then nothing has changed.
        For good: no later start by that name may speak under the tag. After 62 days it is forgotten that it was
        written off, so that there is room; one that comes back then has what it says it has once more, beside what was
        charged for it. So too much may count as spent, and never too little.
        """

    async def close(self) -> None:
        """Let go of connections and files."""
