"""A gateway whose data directory will not be started again: it writes itself off, and nobody waits for its place."""

import asyncio
from collections.abc import Iterable, Mapping

import structlog

from gateway.books.ledger.gone import PRESENT, told
from gateway.books.ledger.lease import Lease
from gateway.books.vault.contract import Vault, VaultDown

log = structlog.get_logger()

TAGS_MAX = 65_536  # under which it writes itself off; under more of them others do, in time
LEAVE_S_MAX = 5.0  # for all of that


class OneOff:
    """Writes a gateway off at its end, under every tag where it has given all rights back: what it spent stays charged.

    A start that fails, say because its port is in use, is no end: see `LeasedLedger.serves`.

    name: of the gateway; tags: those of an earlier start, for a crash is no end. Where it cannot be done it is as after
    a crash: others write it off once they have not heard of it for long.
    """

    def __init__(self, vault: Vault, name: str, tags: Iterable[str]) -> None:
        self._vault, self._name = vault, name
        self._tags = {PRESENT, *tags}

    def note(self, tag: str) -> None:
        """The gateway may have rights under a tag from now on."""
        if len(self._tags) < TAGS_MAX:
            self._tags.add(tag)

    async def leave(self, leases: Mapping[str, Lease]) -> None:
        """Write it off, once nothing is leased any more. leases: as they ended, by tag."""
        kept = {tag for tag, lease in leases.items() if not lease.given_back}
        try:
            async with asyncio.timeout(LEAVE_S_MAX):
                for tag in sorted(self._tags - kept):
                    accounts = await self._vault.write_off(tag, self._name)
                    if accounts is not None:
                        told(tag, self._name, self._name, accounts, 0.0)
        except (VaultDown, TimeoutError) as error:
            log.warning("gateway.not_written_off", why=str(error) or f"not within {LEAVE_S_MAX:g} s")
