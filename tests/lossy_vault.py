"""A vault behind a way on which exchanges get lost."""

from collections.abc import Sequence

from gateway.books.vault.contract import Claim, Exchange, Gateway, Heard, Refusal, Standing, Vault, VaultDown


class LossyVault:
    """`Vault`, behind that way; every gateway of a test may have its own.

    lost: what befalls the next exchanges, one by one: «before» or «after» the vault has heard them; None: nothing.
    down: nothing comes through any more. exchanges: how many were tried.
    """

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.lost: list[str | None] = []
        self.down = False
        self.exchanges = 0

    async def exchange(self, tag: str, gateway: Gateway, claims: Sequence[Claim], known: bool) -> Exchange | Refusal:
        self.exchanges += 1
        lost = "before" if self.down else self.lost.pop(0) if self.lost else None
        if lost == "before":
            raise VaultDown("unheard")
        answer = await self.vault.exchange(tag, gateway, claims, known)
        if lost == "after":
            raise VaultDown("unanswered")
        return answer

    async def begin(self, *, again: bool = False) -> str:
        return await self.vault.begin(again=again)

    async def standings(self, tag: str) -> list[Standing]:
        return await self.vault.standings(tag)

    async def heard(self, tag: str) -> list[Heard]:
        if self.down:
            raise VaultDown("unheard")
        return await self.vault.heard(tag)

    async def write_off(self, tag: str, name: str, unheard_s: float = 0.0) -> int | None:
        if self.down:
            raise VaultDown("unheard")
        return await self.vault.write_off(tag, name, unheard_s)

    async def close(self) -> None:
        await self.vault.close()
