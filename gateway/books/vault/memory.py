"""A vault that forgets at the end of the process: for tests, and for simulated fleets."""

from collections.abc import Callable, Iterable, Sequence

from gateway.books.ledger.contract import Place
from gateway.books.vault import steps
from gateway.books.vault.account import Account, Tag
from gateway.books.vault.contract import Claim, Exchange, Gateway, Heard, Refusal, Standing, VaultDown


class MemoryVault:
    """`Vault` in a process's memory; many gateways of one process may share it.

    clock: unix seconds.
    down: whether it is to be out of reach.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.down = False
        self._clock = clock
        self._shelf = MemoryShelf()

    def restart(self) -> None:
        """Become another start of the server: what was answered might be lost, so that it is quiet at first."""
        self._shelf.run = f"{self._shelf.run}+"

    async def begin(self, *, again: bool = False) -> str:
        return steps.begin(self._up(), self._now_ms(), again)

    async def exchange(self, tag: str, gateway: Gateway, claims: Sequence[Claim], known: bool) -> Exchange | Refusal:
        return steps.exchange(self._up(), tag, gateway, claims, known, self._now_ms())

    async def tags(self) -> list[str]:
        return sorted(self._up().tags())

    async def standings(self, tag: str) -> list[Standing]:
        return steps.standings(self._up(), tag, self._now_ms())

    async def heard(self, tag: str) -> list[Heard]:
        return steps.heard(self._up(), tag, self._now_ms())

    async def write_off(self, tag: str, name: str, unheard_s: float = 0.0) -> int | None:
        return steps.write_off(self._up(), tag, name, round(unheard_s * 1000), self._now_ms())

    async def close(self) -> None:
        pass

    def _up(self) -> "MemoryShelf":
        if self.down:
            raise VaultDown("out of reach")
        return self._shelf

    def _now_ms(self) -> int:
        return round(self._clock() * 1000)


class MemoryShelf:
    """`Shelf` of plain mappings."""

    def __init__(self) -> None:
        self.run = "memory"
        self._begun: steps.Begun | None = None
        self._tags: dict[str, Tag] = {}
        self._accounts: dict[str, dict[Place, Account]] = {}

    def begun(self) -> steps.Begun | None:
        return self._begun

    def put_begun(self, begun: steps.Begun) -> None:
        self._begun = begun

    def tags(self) -> list[str]:
        return list(self._tags)

    def tag(self, tag: str) -> Tag | None:
        return self._tags.get(tag)

    def put_tag(self, tag: str, value: Tag) -> None:
        self._tags[tag] = value

    def accounts(self, tag: str) -> Iterable[tuple[Place, Account]]:
        return self._accounts.get(tag, {}).items()

    def account(self, tag: str, place: Place) -> Account | None:
        return self._accounts.get(tag, {}).get(place)

    def put_account(self, tag: str, place: Place, value: Account, now_ms: int) -> None:
        self._accounts.setdefault(tag, {})[place] = value
