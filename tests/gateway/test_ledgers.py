"""Which ledger a configuration means, and what of gateways that come and go."""

import time

import pytest

from gateway.books.keys import Keys
from gateway.books.ledger.gone import PRESENT
from gateway.books.ledger.register import Register
from gateway.books.vault.memory import MemoryVault
from gateway.config_ledger import LedgerConfig
from gateway.ledgers import gone_of, open_books
from guards.budget import Limit
from tests.ledgers import settle, take


@pytest.mark.parametrize(
    ("said", "says_so"),
    [({"url": "redis://a"}, True), ({"url": "redis://a", "write_off_after": "never"}, True), ({}, False)],
)
async def test_each_says_that_it_is_there_where_many_machines_share(tmp_path, said, says_so):
    """Also one that writes nobody off: or others take it for gone. In a file there are only workers."""
    register = Register(tmp_path)

    gone = gone_of(LedgerConfig.model_validate(said), MemoryVault(time.time), register)

    assert (gone is not None) is says_so
    await register.close()


@pytest.mark.parametrize("one_off", [True, False])
async def test_a_gateway_that_is_one_off_writes_itself_off_when_its_books_are_closed(tmp_path, one_off):
    """With just what it spent, under every tag; others are there again some day."""
    vault = MemoryVault(time.time)
    await vault.begin()
    keys = Keys(tmp_path / "keys.db")

    kind = LedgerConfig.model_validate({"url": "redis://a", "one_off": one_off})
    async with open_books(tmp_path / "data", keys, kind, vault) as books:
        books.ledger.serves = True
        await take(books.ledger, "r1", "org:acme", Limit(1_000), 100)
        await settle(books.ledger, "r1", 70)
    keys.close()

    (tag,) = [tag for tag in await vault.tags() if tag != PRESENT]
    assert [one.fenced for one in await vault.heard(tag)] == [one_off]
    assert [(one.spent, one.leased) for one in await vault.standings(tag)] == [(70, 0)]
