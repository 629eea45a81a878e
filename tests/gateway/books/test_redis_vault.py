"""A vault whose servers die, forget, stall, fail over and move: nobody is given what another may have spent."""

import asyncio
import contextlib
import time

import pytest
import redis

from gateway.books.vault import redis as engine
from gateway.books.vault.contract import Closed, Exchange, Gateway, VaultDown
from gateway.books.vault.redis import TAGS, RedisVault, account_key, keys_of, member_of
from gateway.books.vault.redis_server import ANSWER_S_MAX, BACKOFF_S_MAX, CONNECTIONS_MAX, Login, Server
from gateway.local.ports import free_ports
from tests.processes import until
from tests.redis_servers import RedisServer, redis_cluster
from tests.vaults import ACME, TAG, Teller, claim

AOF = ("--appendonly", "yes", "--appendfsync", "always")
QUIET_S = 0.3


@pytest.fixture
def soon(monkeypatch):
    """A lease that is over in a moment; those of other tests' gateways take seconds."""
    monkeypatch.setattr(engine, "LEASE_MS", round(QUIET_S * 1000))


@pytest.fixture
def server(tmp_path):
    with RedisServer(tmp_path / "redis", *AOF) as server:
        yield server


@pytest.fixture
async def vault(server):
    vault = RedisVault([server.address], Login())
    await vault.begin()
    yield vault
    await vault.close()


def rights(answer):
    return answer.given[0].rights


async def answered(teller, *claims, known=False, seconds=5.0):
    """What a gateway hears at last, however often it is told that the vault is down."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await teller.says(*claims, known=known)
        except VaultDown:
            assert time.monotonic() < deadline, "down for too long"
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------- a server that is not there


async def test_a_server_that_was_killed_is_down_at_once_and_back_within_a_moment(server, vault):
    """Its port is closed; when it is open again, the vault is asked again after a bounded time."""
    one = Teller(vault, "one")
    await one.says(claim(need=100))
    server.kill()

    began_s = time.monotonic()
    for _ in range(20):
        with pytest.raises(VaultDown, match=str(server.port)):
            await one.says(claim(rights=100))
    assert time.monotonic() - began_s < ANSWER_S_MAX
    server.start()
    began_s = time.monotonic()
    back = await answered(one, claim(rights=100), known=True)

    assert time.monotonic() - began_s < BACKOFF_S_MAX + 0.5
    assert back.given[0].free == 900


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "paused", "asleep"])
async def test_a_server_that_does_not_answer_is_down_in_time(server, vault, how):
    """However many ask. No connection is used again whose answer may still come: every answer is its question's."""
    tellers = [Teller(vault, f"g{i}") for i in range(2 * CONNECTIONS_MAX)]
    await asyncio.gather(*(one.says(claim(rights=i + 1), tag=f"t{i}") for i, one in enumerate(tellers)))

    with contextlib.ExitStack() as stack:
        if how == "stopped":
            stack.enter_context(server.stopped())
        elif how == "paused":
            server.ask("CLIENT", "PAUSE", 2500, "ALL")
        else:
            sleeper = asyncio.create_task(asyncio.to_thread(server.ask, "DEBUG", "SLEEP", 2.5))
            await asyncio.to_thread(until, lambda: silent(server))
        began_s = time.monotonic()
        failed = await asyncio.gather(*(one.says(claim(rights=500)) for one in tellers), return_exceptions=True)
        took_s = time.monotonic() - began_s
        again = await asyncio.gather(tellers[0].says(), return_exceptions=True)
        away_s = time.monotonic() - began_s - took_s
    if how == "asleep":
        await sleeper
    told = await asyncio.gather(
        *(answered(one, claim(rights=i + 1)) for i, one in enumerate(tellers)), return_exceptions=True
    )

    assert {type(one) for one in (*failed, *again)} == {VaultDown}
    # Those that had to wait for a connection may try once more, where the back-off that was drawn was short.
    assert took_s < 2 * ANSWER_S_MAX + 0.3
    assert away_s < 0.3 or away_s < ANSWER_S_MAX + 0.1  # back-off is drawn anew each time, and may be over
    assert [rights(one) for one in told] == [i + 1 for i in range(len(tellers))]


async def test_a_caller_that_leaves_takes_its_connection_with_it(server, vault):
    """Its answer is nobody else's."""
    one = Teller(vault, "one")
    await one.says(claim(rights=1))
    with server.stopped():
        leaving = asyncio.create_task(one.says(claim(rights=2)))
        await asyncio.sleep(0.05)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving

    assert rights(await answered(one, claim(rights=3))) == 3


async def test_while_a_server_is_away_nobody_asks_it():
    """For a time that grows, is bounded, and is another one each time."""
    server = Server(("127.0.0.1", free_ports(1)[0]), Login())
    waits = []
    for _ in range(30):
        with pytest.raises(VaultDown):
            await server.ask([("PING",)])
        waits.append(server._away_until_s - asyncio.get_running_loop().time())
        server._away_until_s = 0.0

    server._away_until_s = asyncio.get_running_loop().time() + 60
    with pytest.raises(VaultDown, match="a moment ago"):
        await server.ask([("PING",)])
    assert max(waits[:2]) <= 0.1
    assert 0.2 < max(waits) <= BACKOFF_S_MAX
    assert len({round(wait, 6) for wait in waits if wait > 0}) > 20


async def test_a_connection_that_the_server_closed_is_one_failure(server, vault):
    """As after a restart between two exchanges, or an idle timeout."""
    one = Teller(vault, "one")
    await one.says(claim(rights=1))
    server.ask("CLIENT", "KILL", "TYPE", "normal")

    assert rights(await answered(one, claim(rights=1), seconds=1)) == 1


# ---------------------------------------------------------------- a server that forgot


async def test_a_server_that_comes_back_with_its_file_listens_first(server, vault, soon):
    """It has all accounts, and another run_id; for as long as a lease lasts it gives nothing."""
    one, two = Teller(vault, "one"), Teller(vault, "two")
    await one.says(claim(need=400))
    server.restart()

    quiet = await answered(two, claim(need=100))
    await asyncio.sleep(QUIET_S + 0.02)
    given = await two.says(claim(need=100))

    assert (quiet.quiet, rights(quiet), quiet.given[0].free) == (True, 0, 600)
    assert (given.quiet, rights(given), given.given[0].free) == (False, 100, 500)


async def test_a_server_that_comes_back_empty_is_closed(server, vault, soon):
    """To all, until an operator says that it is to begin again; then those that live say what they have first."""
    living, new = Teller(vault, "living"), Teller(vault, "new")
    await living.says(claim(need=700))
    server.restart(empty=True)

    assert isinstance(await answered(new, claim(need=500)), Closed)
    assert isinstance(await living.says(claim(rights=700, spent=300), known=True), Closed)
    assert server.ask("DBSIZE") == 0
    await vault.begin()
    assert isinstance(await living.says(claim(rights=700, spent=300), known=True), Closed)
    await vault.begin(again=True)
    assert (await new.says(claim(need=500))).quiet
    assert (await living.says(claim(rights=700, spent=300), known=True)).quiet
    await asyncio.sleep(QUIET_S + 0.02)
    assert (await new.says(claim(need=500))).given == ((0, 300, 0, False),)


async def test_a_tag_that_was_lost_is_not_made_anew(server, vault, soon):
    """The registry knows it; after a new beginning it may be, once."""
    one, two = Teller(vault, "one"), Teller(vault, "two")

    def lose():
        server.ask("DEL", *keys_of(TAG), account_key(TAG, member_of(ACME)))

    await one.says(claim(need=700))
    for other in ("org:b", "org:c"):
        lose()
        for teller, known in ((two, False), (one, True), (two, False)):
            assert isinstance(await teller.says(claim(need=500), known=known), Closed)
        assert rights(await two.says(claim(need=500), tag=other)) == 500
        await vault.begin(again=True)
        await asyncio.sleep(QUIET_S + 0.02)
        assert (await two.says(claim(need=500))).quiet  # however long after, since it may have been anybody's
        await asyncio.sleep(QUIET_S + 0.02)
        assert rights(await two.says(claim(need=500))) == 500
    lose()
    assert isinstance(await two.says(claim(need=500)), Closed)


async def test_a_new_beginning_keeps_what_is_there(server, vault, soon):
    """It listens first, since it may be older than what was answered."""
    one = Teller(vault, "one")
    await one.says(claim(need=700))
    await vault.begin(again=True)

    assert await one.says(claim(rights=700, need=1)) == Exchange(((700, 300, 0, False),), quiet=True)
    await asyncio.sleep(QUIET_S + 0.02)
    assert rights(await one.says(claim(rights=700, need=1))) == 701


async def test_gateways_that_make_the_same_tag_at_once_are_all_served(server, vault):
    """By each other's marks."""
    vaults = [RedisVault([server.address], Login()) for _ in range(12)]

    answers = await asyncio.gather(*(Teller(one, f"g{i}").says(claim(need=10)) for i, one in enumerate(vaults)))

    assert [rights(one) for one in answers] == [10] * 12
    for one in vaults:
        await one.close()


async def test_a_tag_that_another_made_between_two_looks_is_not_lost(server, vault, monkeypatch):
    """It was absent, and is known to the registry now: whoever sees that looks again."""
    there, registered = RedisVault([server.address], Login()), vault._registered

    async def later(*about):
        monkeypatch.undo()
        await Teller(there, "two").says(claim(need=10))
        return await registered(*about)

    monkeypatch.setattr(vault, "_registered", later)

    assert (await Teller(vault, "one").says(claim(need=10))).given[0].free == 980
    await there.close()


@pytest.mark.parametrize("registered", [False, True])
async def test_a_tag_whose_maker_died_is_finished_by_the_next(server, vault, registered):
    """Whichever step it died after: made and shut, or known to the registry, too."""
    await vault._run(vault._exchange, keys_of(TAG), ["dead", "1", "1", 5000, 2000, 256, "mark", "", 0])
    if registered:
        await vault._registered(TAG, "mark", known=False)

    wrong = await vault._run(vault._exchange, keys_of(TAG), ["dead", "1", "1", 5000, 2000, 256, "", "another", 0])
    assert wrong[0] == [b"shut", b"mark"]
    assert rights(await Teller(vault, "one").says(claim(need=10))) == 10
    assert server.ask("HGET", TAGS, "org:acme") == b"mark 0"


async def test_scripts_that_the_server_forgot_are_sent_again(server, vault):
    """And else an exchange is one command."""
    one = Teller(vault, "one")
    await one.says(claim(need=1))
    sent = vault.commands
    await one.says(claim(need=1))
    assert vault.commands == sent + 1

    server.ask("SCRIPT", "FLUSH")

    assert rights(await one.says(claim(rights=1, need=1))) == 2


# ---------------------------------------------------------------- servers that refuse


async def test_a_password_is_told_to_nobody(tmp_path):
    """Neither when it is wrong, nor when the server is gone."""
    with RedisServer(tmp_path, "--requirepass", "sesame") as server:
        right, wrong, none = (
            RedisVault([server.address], Login(password=password)) for password in ("sesame", "simsalabim", None)
        )
        assert await right.begin()
        for vault in (wrong, none):
            with pytest.raises(VaultDown) as down:
                await vault.begin()
            assert "simsalabim" not in f"{down.value} {down.value.__context__} {vault._login}"
        server.kill()
        with pytest.raises(VaultDown) as down:
            await right.tags()
        assert "sesame" not in f"{down.value} {right._login!r}"
        for vault in (right, wrong, none):
            await vault.close()


async def test_a_server_that_throws_keys_away_is_refused(server, vault):
    """What it throws away could be what a gateway has."""
    server.ask("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "volatile-lru")

    refused = await Teller(vault, "one").says(claim(need=1))

    assert isinstance(refused, Closed)
    assert "noeviction" in refused.why


async def test_a_server_without_memory_or_without_its_file_is_down(server, vault):
    """It refuses to write; nothing has changed by then."""
    one = Teller(vault, "one")
    await one.says(claim(need=1))
    server.ask("CONFIG", "SET", "maxmemory", "1")

    with pytest.raises(VaultDown, match="maxmemory"):
        await one.says(claim(need=500))
    server.ask("CONFIG", "SET", "maxmemory", "0")
    assert (await one.says(claim())).given[0].free == 1_000


# ---------------------------------------------------------------- replicas


@pytest.fixture
def replica(tmp_path, server):
    with RedisServer(tmp_path / "replica") as replica:
        replica.follow(server)
        yield replica


async def test_a_replica_that_is_promoted_listens_first(server, vault, replica, soon):
    """Until then it refuses. What it had not heard of is said again, before anything is given."""
    one, two = Teller(vault, "one"), Teller(vault, "two")
    there = RedisVault([replica.address], Login())
    await one.says(claim(need=100))
    until(lambda: replica.ask("HGET", account_key(TAG, member_of(ACME)), "@one") == b"100 0 0")
    replica.ask("REPLICAOF", "127.0.0.1", free_ports(1)[0])  # it hears nothing of the next grant
    await one.says(claim(rights=100, need=700))
    server.kill()
    one.vault = two.vault = there

    with pytest.raises(VaultDown, match=r"read only|MASTERDOWN"):
        await two.says(claim(need=500))
    replica.promote()
    early = await answered(two, claim(need=500))
    said = await one.says(claim(rights=800, spent=800))
    await asyncio.sleep(QUIET_S + 0.02)
    late = await two.says(claim(need=500))

    assert (early.quiet, early.given[0].free) == (True, 900)
    assert (said.quiet, said.given[0].free) == (True, 200)
    assert (late.quiet, rights(late), late.given[0].free) == (False, 0, 200)
    await there.close()


async def test_an_address_that_is_another_server_now_is_followed(server, replica, soon):
    """The old one was made a replica, and goes on answering on connections that it had: that it is read only."""
    target = server

    async def join(reader, writer):
        there = await asyncio.open_connection(*target.address)
        await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))

    async def pipe(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    door = await asyncio.start_server(join, "127.0.0.1", 0)
    vault = RedisVault([door.sockets[0].getsockname()], Login())
    await vault.begin()
    one = Teller(vault, "one")
    await one.says(claim(need=100))
    until(lambda: replica.ask("EXISTS", account_key(TAG, member_of(ACME))) == 1)
    target = replica
    replica.promote()
    server.ask("REPLICAOF", *replica.address)

    with pytest.raises(VaultDown, match="read only"):
        await one.says(claim(rights=100))
    after = await one.says(claim(rights=100))

    assert (after.quiet, after.given[0].free) == (True, 900)
    await vault.close()
    door.close()


def silent(server):
    """Whether it does not answer within a moment."""
    with server.client(socket_timeout=0.05) as client:
        try:
            client.ping()
        except redis.TimeoutError:
            return True
    return False


async def test_a_grant_counts_when_enough_replicas_have_it(server, replica):
    """Else it is as if it had not been given: the gateway says what it had, and all is free again."""
    vault = RedisVault([server.address], Login(), replicas=1)
    await vault.begin()
    one = Teller(vault, "one")

    assert rights(await answered(one, claim(need=100))) == 100
    with replica.stopped():
        with pytest.raises(VaultDown, match=r"0 of 1 replicas"):
            await one.says(claim(rights=100, need=500))
        assert (await answered(one, claim(rights=100, spent=100))).given[0].free == 900  # which gives nothing
    assert rights(await answered(one, claim(rights=100, spent=100, need=500))) == 600
    await vault.close()


# ---------------------------------------------------------------- a cluster


@pytest.mark.slow
async def test_a_slot_that_moved_is_followed_and_listens_first(tmp_path, monkeypatch):
    """To the node that has it now; in the middle of the move, too."""
    monkeypatch.setattr(engine, "LEASE_MS", 1500)  # in which all nodes can be told
    with redis_cluster(tmp_path) as nodes:
        vault = RedisVault([nodes[0].address], Login())
        await vault.begin()
        one, two = Teller(vault, "one"), Teller(vault, "two")
        await one.says(claim(need=400))
        key, slot = keys_of(TAG)[0], nodes[0].ask("CLUSTER", "KEYSLOT", keys_of(TAG)[0])
        here = next(node for node in nodes if owns(node, key))
        there = next(node for node in nodes if node is not here)
        assert vault._owners[slot] == here.address
        straight = RedisVault([here.address], Login())  # which hears of no move, ever
        await Teller(straight, "three").says(claim(), known=True)
        assert straight._owners[slot] == here.address
        await straight.close()
        ids = {node: node.ask("CLUSTER", "MYID") for node in (here, there)}

        there.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[here])
        here.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[there])
        keys = here.ask("CLUSTER", "GETKEYSINSLOT", slot, 100)
        here.ask("MIGRATE", "127.0.0.1", there.port, "", 0, 5000, "KEYS", *keys)
        midway = await one.says(claim(rights=400, need=1), known=True)
        for node in (there, here, *nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[there])
        after = await two.says(claim(need=100))
        await asyncio.sleep(1.52)

        assert (midway.quiet, rights(midway)) == (True, 400)
        assert (after.quiet, after.given[0].free) == (True, 600)
        assert vault._owners[slot] == there.address
        assert rights(await two.says(claim(need=100))) == 100
        await vault.close()


def owns(node, key):
    with node.client() as client, contextlib.suppress(Exception):
        return client.exists(key) == 1
    return False


@pytest.mark.slow
async def test_a_cluster_that_lost_a_master_goes_on_with_its_replica(tmp_path, soon):
    """Down while nobody has the slot, then quiet, then as before; tags of other masters notice nothing."""
    with redis_cluster(tmp_path, replicas=True) as nodes:
        vault = RedisVault([node.address for node in nodes[:2]], Login(), replicas=1)
        await vault.begin()
        one, two = Teller(vault, "one"), Teller(vault, "two")
        await one.says(claim(need=400))
        dead = next(node for node in nodes[:3] if owns(node, keys_of(TAG)[0]))
        dead.kill()

        with pytest.raises(VaultDown):
            await two.says(claim(need=100))
        early = await answered(two, claim(need=100), known=True, seconds=20)
        await asyncio.sleep(QUIET_S + 0.02)
        vault._replicas = 0  # the only one there was is the master now
        late = await answered(two, claim(need=100))

        assert (early.quiet, early.given[0].free) == (True, 600)
        assert (late.quiet, rights(late), late.given[0].free) == (False, 100, 500)
        await vault.close()


async def test_late_answers_and_other_gateways_epochs_survive_a_restart(server, vault):
    """Who was fenced is fenced, and what was late is late, also for the server that took over."""
    await vault.exchange(TAG, Gateway("one", 2, 7), [claim(rights=5)], False)
    server.restart()

    refusals = [await answered(Teller(vault, "one", 1), claim(rights=5), known=True)]
    refusals.append(await vault.exchange(TAG, Gateway("one", 2, 7), [claim(rights=5)], True))

    assert [type(one).__name__ for one in refusals] == ["Fenced", "Stale"]
