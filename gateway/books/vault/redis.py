"""A vault in Redis or Valkey (7 or later), one server or a cluster of them: for gateways on many machines.

One exchange is one Lua script over keys of one slot. What a server may lose is seen by the scripts themselves:

    another server      a restart, a failover, a slot that moved: each shows as another `run_id`, and the tag is quiet
                        until all that live have said their rights again
    a lost tag          the registry knows it, by the mark it was made with; one that is made anew has another mark,
                        and stays shut
    a lost registry     has no marker that an operator began the vault: no tag is made
    a full memory       a server that evicts keys is refused; one that does not refuses to write

Redis replicates after it has answered. A failover within that moment loses the last grants: gateways that live say them
again before anything is given, but what one that died then had of them can be given once more. `replicas` closes that:
a grant counts only when so many replicas have it (WAIT), as long as one of those is promoted. The same holds for a
restart from an append-only file that is not flushed for every command.

A cluster is not asked for its map. Who answers for a slot is asked again; who does not have it says who has (MOVED).
"""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1
from importlib.resources import files
from typing import Any
from urllib.parse import quote, unquote

from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, NoScriptError, ResponseError

from gateway.books.ledger.contract import Place
from gateway.books.vault import account, steps
from gateway.books.vault.account import FENCED_MS, GATEWAYS_MAX, LEASE_MS, WANTED_MS, Account, Share, Speaker
from gateway.books.vault.contract import (
    Claim,
    Closed,
    Exchange,
    Gateway,
    Given,
    Heard,
    Refusal,
    Standing,
    VaultDown,
)
from gateway.books.vault.redis_server import Address, Command, Login, Server

EXCHANGE_S_MAX = 1.0  # with all its detours; each is bounded by its server's answer, too
WAIT_MS = 200  # for replicas to say that they have a grant
HOPS_MAX = 4  # from server to server, for one slot
SERVERS_MAX = 1024  # of one cluster
ROUNDS_MAX = 5  # of an exchange under a tag that is being made
PART = 200  # accounts in one question, or a few more

VAULT, TAGS = "{holdfast}:vault", "{holdfast}:tags"


class Script:
    """A Lua script of this package; the server knows it by its hash."""

    def __init__(self, name: str) -> None:
        self.text = files(__package__).joinpath(name).read_text("utf-8")
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class RedisVault:
    """`Vault` in Redis; for use from one event loop.

    addresses: of the server; of a cluster, some of them. replicas: how many must have a grant before it counts.
    """

    def __init__(self, addresses: Sequence[Address], login: Login, *, replicas: int = 0) -> None:
        self._login = login
        self._replicas = replicas
        self._servers = {address: Server(address, login) for address in addresses}
        self._owners: dict[int, Address] = {}  # of slots: who answered for it, or was named
        self._exchange, self._register, self._write_off = map(Script, ("exchange.lua", "register.lua", "write_off.lua"))

    @property
    def commands(self) -> int:
        """Redis commands sent so far."""
        return sum(server.commands for server in self._servers.values())

    async def begin(self, *, again: bool = False) -> str:
        name = steps.new_name()
        if not again:
            made = (await self._ask(VAULT, [("HSETNX", VAULT, "name", name)]))[0]
            if not made:
                raise ValueError(steps.in_use((await self._ask(VAULT, [("HGET", VAULT, "name")]))[0].decode()))
            return name
        ((seconds, micros),) = await self._ask(VAULT, [("TIME",)])
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        await self._ask(VAULT, [("HSET", VAULT, "name", name, "again", now_ms)])
        # What is there is quiet at first: it may be older than what was answered. What was lost may be made anew, once.
        entries = (await self._ask(TAGS, [("HGETALL", TAGS)]))[0]
        for tag, entry in zip(entries[::2], entries[1::2], strict=True):
            key = keys_of(unquote_name(tag))[0]
            mark = (await self._ask(key, [("HGET", key, "mark")]))[0]
            if mark is None or entry.split()[0] != mark:
                await self._ask(TAGS, [("HSET", TAGS, tag, "lost")])
            else:
                await self._ask(key, [("HSET", key, "run", "")])
        return name

    async def exchange(self, tag: str, gateway: Gateway, claims: Sequence[Claim], known: bool) -> Exchange | Refusal:
        claims = account.checked(claims)
        make = opening = ""
        quiet_ms, looked = 0, False
        async with in_time():
            for _ in range(ROUNDS_MAX):
                said, copies = await self._exchanged(tag, gateway, claims, make, opening, quiet_ms)
                if said[0] not in (b"absent", b"shut"):
                    answer = told(gateway, said)
                    if isinstance(answer, Exchange) and more(claims, answer):
                        self._copied(copies)
                    return answer
                opening = said[1].decode() if said[0] == b"shut" else ""
                found = await self._registered(tag, opening, known)
                if not isinstance(found, Refusal):
                    make, quiet_ms = secrets.token_hex(8), found
                elif looked or opening:
                    return found
                looked = True  # where it is not there, another gateway may have made it just now: look again
        raise VaultDown(f"the accounts of {tag} come and go")

    async def tags(self) -> list[str]:
        return sorted(unquote_name(tag) for tag in (await self._ask(TAGS, [("HKEYS", TAGS)]))[0])

    async def standings(self, tag: str) -> list[Standing]:
        key, index = keys_of(tag)
        speakers, now_ms = await self._speakers(tag)
        living = {name for name, one in speakers.items() if one.lives(now_ms)}
        found = {}
        async for part in self._members(key, index):
            hashes = await self._ask(key, [("HGETALL", account_key(tag, member)) for member in part])
            for member, flat in zip(part, hashes, strict=True):
                if flat:
                    found[member] = read_account(flat).standing(place_of(member), living)
        return sorted(found.values())

    async def heard(self, tag: str) -> list[Heard]:
        speakers, now_ms = await self._speakers(tag)
        return [Heard(name, max(0, now_ms - one.heard_ms) / 1000, one.fenced) for name, one in sorted(speakers.items())]

    async def write_off(self, tag: str, name: str, unheard_s: float = 0.0) -> int | None:
        key, index = keys_of(tag)
        arguments: list[str | int] = [quote_name(name), round(unheard_s * 1000)]
        # First the fence; what the gateway has does not change after it.
        if (await self._run(self._write_off, [key], arguments))[0] == -1:
            return None
        number = 0
        async for part in self._members(key, index):
            accounts = [account_key(tag, member) for member in part]
            number += max(0, (await self._run(self._write_off, [key, *accounts], arguments))[0])
        return number

    async def close(self) -> None:
        for server in self._servers.values():
            await server.close()

    # ---------------------------------------------------------------- exchanges

    async def _exchanged(
        self, tag: str, gateway: Gateway, claims: Sequence[Claim], make: str, opening: str, quiet_ms: int
    ) -> tuple[list[Any], int]:
        members = [member_of(one.place) for one in claims]
        arguments: list[str | int | float] = [
            quote_name(gateway.name), f"{gateway.epoch:020d}", f"{gateway.number:020d}",
            LEASE_MS, WANTED_MS, GATEWAYS_MAX, make, opening, quiet_ms,
            quote_name(gateway.start), FENCED_MS,
        ]  # fmt: skip
        for one, member in zip(claims, members, strict=True):
            amounts = (account.bound(one.limit), one.as_of, one.rights, one.spent, one.want, one.need)
            arguments += [member, *amounts, account.lasts_s(one.place), account.counted(one)]
        accounts = [account_key(tag, member) for member in members]
        gives = any(one.want or one.need for one in claims)
        return await self._run(self._exchange, [*keys_of(tag), *accounts], arguments, wait=gives)

    async def _registered(self, tag: str, mark: str, known: bool) -> int | Refusal:
        """How long a tag that is opened now is quiet, or why it may not be."""
        arguments: list[str | int] = [quote_name(tag), mark, int(known), LEASE_MS]
        said, copies = await self._run(self._register, [VAULT, TAGS], arguments, wait=bool(mark))
        if said[0] == b"open":
            if mark:
                self._copied(copies)
            return int(said[1])
        return account.empty() if said[0] == b"empty" else account.lost(tag)

    def _copied(self, copies: int) -> None:
        """Raises VaultDown where fewer replicas have an answer than must: it does not count then."""
        if copies < self._replicas:
            raise VaultDown(f"{copies} of {self._replicas} replicas have the answer within {WAIT_MS} ms")

    async def _members(self, key: str, index: str) -> AsyncIterator[list[bytes]]:
        """All accounts that a tag has throughout, part by part; some may come twice."""
        cursor = b"0"
        while True:
            ((cursor, flat),) = await self._ask(key, [("ZSCAN", index, cursor, "COUNT", PART)])
            if flat:
                yield flat[::2]
            if cursor == b"0":
                return

    async def _speakers(self, tag: str) -> tuple[dict[str, Speaker], int]:
        """The gateways of a tag, and the server's time."""
        key, _ = keys_of(tag)
        flat, (seconds, micros) = await self._ask(key, [("HGETALL", key), ("TIME",)])
        found = {}
        for name, said in zip(flat[::2], flat[1::2], strict=True):
            if name.startswith(b"@"):
                epoch, number, heard_ms, start = said.split(b" ")
                fenced = epoch == b"fenced"
                found[unquote_name(name[1:])] = Speaker(
                    0 if fenced else int(epoch), int(number), int(heard_ms), fenced, unquote_name(start)
                )
        return found, int(seconds) * 1000 + int(micros) // 1000

    # ---------------------------------------------------------------- commands

    async def _run(
        self, script: Script, keys: Sequence[str | bytes], arguments: Sequence[str | bytes | int | float], *,
        wait: bool = False,
    ) -> tuple[Any, int]:  # fmt: skip
        """Run a script on its keys, of one slot: its answer, and how many replicas have it, where it is to wait."""
        after: list[Command] = [("WAIT", self._replicas, WAIT_MS)] if wait and self._replicas else []
        rest = (len(keys), *keys, *arguments)
        try:
            answers = await self._ask(keys[0], [("EVALSHA", script.sha, *rest), *after])
        except NoScriptError:
            answers = await self._ask(keys[0], [("EVAL", script.text, *rest), *after])
        return answers[0], answers[1] if after else 0

    async def _ask(self, key: str | bytes, commands: list[Command]) -> list[Any]:
        """Have commands answered by the server that has a key's slot. Raises VaultDown; NoScriptError."""
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        server, asking = self._owner(slot), False
        for _ in range(HOPS_MAX):
            try:
                answers = await server.ask([("ASKING",), *commands] if asking else commands)
            except VaultDown:
                self._owners.pop(slot, None)  # a replica may have it by now: another server will know
                raise
            refused = next((one for one in answers if isinstance(one, ResponseError)), None)
            if refused is None:
                if asking:  # in the middle of a move: the slot is still another's
                    return answers[1:]
                self._owners[slot] = server.address
                return answers
            if isinstance(refused, MovedError | AskError):  # which is one of those
                asking = not isinstance(refused, MovedError)
                server = self._named((refused.host or server.address[0], refused.port))
                if not asking:
                    self._owners[slot] = server.address
                continue
            if isinstance(refused, NoScriptError):
                raise refused
            self._owners.pop(slot, None)
            await server.close()  # its address may be another server's by now: of one that was promoted
            raise VaultDown("{}:{}: {}".format(*server.address, str(refused)[:200]))
        raise VaultDown("the cluster's servers send from one to another")

    def _owner(self, slot: int) -> Server:
        """Who is known to have a slot, or any that is not away."""
        address = self._owners.get(slot)
        if address is not None:
            return self._servers[address]
        servers = list(self._servers.values())
        return random.choice([one for one in servers if not one.away] or servers)

    def _named(self, address: Address) -> Server:
        if address not in self._servers and len(self._servers) >= SERVERS_MAX:
            raise VaultDown(f"more than {SERVERS_MAX} servers")
        return self._servers.setdefault(address, Server(address, self._login))


@asynccontextmanager
async def in_time() -> AsyncIterator[None]:
    """Raises VaultDown after EXCHANGE_S_MAX."""
    try:
        async with asyncio.timeout(EXCHANGE_S_MAX):
            yield
    except TimeoutError:
        raise VaultDown(f"no answer within {EXCHANGE_S_MAX} s") from None


def told(gateway: Gateway, said: list[Any]) -> Exchange | Refusal:
    """What the script says, in the contract's words."""
    match said[0]:
        case b"stale":
            return account.stale()
        case b"fenced":
            return account.fenced(gateway.name)
        case b"forgetful":
            return account.forgetful(gateway.name)
        case b"crowded":
            return account.crowded()
        case b"evicts":
            policy = said[1].decode()
            return Closed(f"the server evicts keys ({policy}): set maxmemory-policy noeviction")
    given = (
        Given(rights, free, others, bool(wanted))
        for rights, free, others, wanted in zip(*[iter(said[2:])] * 4, strict=True)
    )
    return Exchange(tuple(given), bool(said[1]))


def more(claims: Sequence[Claim], answer: Exchange) -> bool:
    """Whether anything was given."""
    return any(given.rights > said.rights for given, said in zip(answer.given, claims, strict=True))


# ---------------------------------------------------------------- names of keys


def quote_name(name: str) -> str:
    """A name without braces, spaces and whatever else means something."""
    return quote(name, safe="/:.-_")


def unquote_name(quoted: bytes) -> str:
    return unquote(quoted.decode())


def keys_of(tag: str) -> tuple[str, str]:
    """The keys of a tag and of the index of its accounts: in one slot, whatever the tag is called."""
    slot = f"{{holdfast:{quote_name(tag)}}}"
    return f"{slot}:tag", f"{slot}:accounts"


def account_key(tag: str, member: str | bytes) -> str:
    """The key of an account."""
    return f"{{holdfast:{quote_name(tag)}}}:account {member if isinstance(member, str) else member.decode()}"


def member_of(place: Place) -> str:
    """An account as the index has it."""
    return " ".join(map(quote_name, place))


def place_of(member: bytes) -> Place:
    return Place(*map(unquote_name, member.split(b" ")))


def read_account(flat: list[bytes]) -> Account:
    """An account, from a hash."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    shares = {}
    for name, share in fields.items():
        if name.startswith(b"@"):
            shares[unquote_name(name[1:])] = Share(*map(int, share.split()))
    return Account(int(fields[b"limit"]), off=int(fields.get(b"off", 0)), shares=shares)
