"""What a vault on this machine does, whatever keeps its values; one step at a time.

A vault that one file or one process keeps cannot lose one tag and keep another, so its registry is what it has.
"""

import secrets
from collections.abc import Iterable, Sequence
from typing import Protocol

from msgspec import Struct

from gateway.books.ledger.contract import Place
from gateway.books.vault.account import LEASE_MS, Account, Tag, checked, empty, forgetful, lost
from gateway.books.vault.contract import Claim, Exchange, Gateway, Heard, Refusal, Standing


class Begun(Struct):
    """That an operator has let the vault be used. again_ms: when that was for the last time after a loss; 0: never."""

    name: str
    again_ms: int = 0


class Shelf(Protocol):
    """Where a vault keeps its values. What is put counts, not what is changed in place.

    run: which server, and which start of it, this is; another one may have lost what was answered.
    """

    run: str

    def begun(self) -> Begun | None: ...
    def put_begun(self, begun: Begun) -> None: ...
    def tags(self) -> list[str]: ...
    def tag(self, tag: str) -> Tag | None: ...
    def put_tag(self, tag: str, value: Tag) -> None: ...
    def accounts(self, tag: str) -> Iterable[tuple[Place, Account]]: ...
    def account(self, tag: str, place: Place) -> Account | None: ...
    def put_account(self, tag: str, place: Place, value: Account, now_ms: int) -> None: ...


def begin(shelf: Shelf, now_ms: int, again: bool) -> str:
    """`Vault.begin`."""
    found = shelf.begun()
    if found is not None and not again:
        raise ValueError(in_use(found.name))
    begun = Begun(new_name(), now_ms if again else 0)
    shelf.put_begun(begun)
    for tag in shelf.tags():
        kept = shelf.tag(tag)
        assert kept is not None
        kept.run = ""  # so that it is quiet at first: what it has may be older than what was answered
        shelf.put_tag(tag, kept)
    return begun.name


def new_name() -> str:
    """A name for a vault that begins."""
    return secrets.token_hex(8)


def in_use(name: str) -> str:
    """Why a vault cannot begin."""
    return f"the ledger {name} is in use: after a loss, begin --again"


def exchange(
    shelf: Shelf, tag: str, gateway: Gateway, claims: Sequence[Claim], known: bool, now_ms: int
) -> Exchange | Refusal:
    """`Vault.exchange`."""
    claims = checked(claims)
    begun = shelf.begun()
    if begun is None:
        return empty()
    kept = shelf.tag(tag)
    if kept is None:
        if known and not begun.again_ms:
            return lost(tag)
        kept = Tag(shelf.run, made_quiet_ms(begun.again_ms, known, now_ms))
    refusal = kept.refuses(gateway, now_ms)
    if refusal is not None:
        return refusal
    accounts = [shelf.account(tag, said.place) or Account() for said in claims]
    if any(account.forgotten(gateway.name, said) for account, said in zip(accounts, claims, strict=True)):
        return forgetful(gateway.name)
    kept.hear(gateway, shelf.run, now_ms)
    shelf.put_tag(tag, kept)
    living, quiet, answers = kept.living(now_ms), now_ms < kept.quiet_ms, []
    for account, said in zip(accounts, claims, strict=True):
        answers.append(account.claim(gateway.name, said, living, quiet, now_ms))
        shelf.put_account(tag, said.place, account, now_ms)
    return Exchange(tuple(answers), quiet)


def made_quiet_ms(again_ms: int, known: bool, now_ms: int) -> int:
    """Until when no rights are given under a tag that is made now.

    One that nobody had can give at once. After a loss it may be one that somebody had: until all that live have had
    the time to say so, and where this one says so, until the others have, too.
    """
    return now_ms + LEASE_MS if known else again_ms + LEASE_MS if again_ms else 0


def standings(shelf: Shelf, tag: str, now_ms: int) -> list[Standing]:
    """`Vault.standings`."""
    kept = shelf.tag(tag)
    living = kept.living(now_ms) if kept else set()
    return [account.standing(place, living) for place, account in sorted(shelf.accounts(tag), key=lambda at: at[0])]


def heard(shelf: Shelf, tag: str, now_ms: int) -> list[Heard]:
    """`Vault.heard`."""
    kept = shelf.tag(tag)
    found = sorted(kept.gateways.items()) if kept else []
    return [Heard(name, max(0, now_ms - one.heard_ms) / 1000, one.fenced) for name, one in found]


def write_off(shelf: Shelf, tag: str, name: str, unheard_ms: int, now_ms: int) -> int | None:
    """`Vault.write_off`."""
    kept = shelf.tag(tag)
    known = kept.gateways.get(name) if kept is not None else None
    if kept is None or known is None or not (known.fenced or now_ms - known.heard_ms >= unheard_ms):
        return None
    if not known.fenced:
        known.fenced, known.heard_ms = True, now_ms  # from then on it is remembered for FENCED_MS
    shelf.put_tag(tag, kept)
    number = 0
    for place, account in list(shelf.accounts(tag)):
        if account.write_off(name):
            shelf.put_account(tag, place, account, now_ms)
            number += 1
    return number
