"""The page store on Redis: what others write there is not believed, and no server keeps an engine waiting."""

import subprocess
import threading
import time
from contextlib import contextmanager

import pytest

from tests.vllm_plugin.store.pages import PAGE_BYTES, all_right, key_of, page, right
from tests.vllm_plugin.store.processes import Mortal
from tests.vllm_plugin.store.redis_servers import Liar, Redis, address_of, free_port, made_key
from vllm_plugin.store import (
    Quarantine,
    StoreBusy,
    StoreRefused,
    open_store,
    redis_copies,
    redis_server,
    redis_versions,
)
from vllm_plugin.store.redis_entries import Seals
from vllm_plugin.store.redis_server import CONNECT_S_MAX, SLOW_S_MAX, SOCKET_S_MAX
from vllm_plugin.store.redis_store import HELD_S_MAX, READ_S_MAX, TIDY_S_MAX

SLACK_S = 0.5  # of a busy machine
NUMBERS = list(range(40))
KEYS = [key_of(number) for number in NUMBERS]


@pytest.fixture
def mortals(tmp_path):
    """Two servers that a test may hurt."""
    with Redis(tmp_path / "a") as one, Redis(tmp_path / "b") as other:
        yield [one, other]


@pytest.fixture
def patient(monkeypatch):
    """Of a test that is not about slow servers: on a machine that is busy with others, one that is well may be."""
    monkeypatch.setattr(redis_server, "SOCKET_S_MAX", 10.0)
    for module in (redis_server, redis_copies):
        monkeypatch.setattr(module, "SLOW_S_MAX", 10.0)


@pytest.fixture
def shared(mortals, key_file):
    """A store on both, each page twice."""
    store = open_store(address_of(mortals, key_file, copies=2))
    yield store
    store.close(1)


def put(store, numbers=NUMBERS, session="s"):
    assert store.put([page(number, session) for number in numbers])


def named(number):
    return b"holdfast:pages:p:" + key_of(number)


def first_of(store, servers, number=0):
    """The server that is asked first for a page."""
    name = store._copies.of(key_of(number))[0].name
    return next(server for server in servers if name.endswith(f":{server.port}"))


def settle(store):
    """What the writer was given is done."""
    assert store.put([])


@contextmanager
def within(limit_s):
    begun_s = time.monotonic()
    yield
    assert time.monotonic() - begun_s < limit_s + SLACK_S


# Servers that die, are slow or full.


def passes(said, deadline_s=30.0):
    """Wait until it is so."""
    until_s = time.monotonic() + deadline_s
    while not said():
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_a_server_killed_while_pages_are_read_costs_none(patient, shared, mortals):
    """Every read has all pages, before, in and after its death."""
    put(shared)
    reads, ends = [], threading.Event()

    def read():
        while not ends.is_set():
            reads.append(all(all_right(shared, NUMBERS)))

    reader = threading.Thread(target=read)
    reader.start()
    passes(lambda: len(reads) > 3)
    mortals[0].kill()
    before = len(reads)
    passes(lambda: len(reads) > before + 3)
    ends.set()
    reader.join(10)

    assert all(reads)


def test_a_server_killed_while_pages_are_written_costs_none_that_is_said_to_be_there(patient, shared, mortals):
    """What was put before on both is on the other one; what is put afterwards too."""
    there, ends = [], threading.Event()

    def write():
        number = 0
        while not ends.is_set() and number < 4000:
            if shared.put([page(number)]):
                there.append(number)
            number += 1
            time.sleep(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    passes(lambda: len(there) > 3)
    mortals[0].kill()
    before = len(there)
    passes(lambda: len(there) > before + 3)
    ends.set()
    writer.join(10)

    assert all(all_right(shared, there))


def test_an_engine_killed_while_it_writes_leaves_whole_pages(patient, servers, key_file):
    """And nothing half written that does not go by itself."""
    for server in servers:
        server.ask("FLUSHALL")
    url = address_of(servers, key_file, copies=2)
    for seed in range(3):
        engine = Mortal(url, seed)
        engine.says("ready")
        time.sleep(0.4 + 0.1 * seed)
        engine.kill()

    store = open_store(url)
    numbers = [number for number in range(400) if store.held([key_of(number)])]
    assert numbers
    assert all(all_right(store, numbers))
    assert store.stats().damaged == 0
    for server in servers:
        assert all(server.ask("PTTL", name) > 0 for name in server.ask("KEYS", "holdfast:pages:t:*"))
    store.close()


def test_without_servers_there_is_nothing_and_nobody_waits(shared, mortals):
    """Pages are shed and counted; who wants to be sure of an erasure is told that it is not."""
    put(shared)
    for server in mortals:
        server.kill()

    with within(HELD_S_MAX):
        assert shared.held(KEYS) == 0
    with shared.read(KEYS) as found:
        assert found == [None] * len(KEYS)
    assert shared.put_soon([page(100)])
    assert not shared.put([page(101)])
    assert shared.quarantine(KEYS[0], page(0).manifest.digest) == Quarantine.PENDING
    with pytest.raises(StoreBusy, match="not done on all servers"):
        shared.erase("s")
    assert shared.stats().shed == 2
    assert shared.stats().failed


def test_who_only_looks_is_told_that_no_server_answers(mortals, key_file):
    """An engine starts all the same: they may come later."""
    url = address_of(mortals, key_file)
    open_store(url, make=False).close()
    mortals[0].kill()
    open_store(url, make=False).close()
    mortals[1].kill()

    with pytest.raises(StoreRefused, match="no server answers"):
        open_store(url, make=False)
    open_store(url).close()


def test_stopped_servers_keep_nobody_waiting(shared, mortals):
    """They accept connections and say nothing: each call ends within its limit, and giving a page waits for nothing."""
    put(shared)
    with mortals[0].stopped(), mortals[1].stopped():
        with within(0):
            assert shared.put_soon([page(100)])
        with within(HELD_S_MAX + SOCKET_S_MAX):
            assert shared.held(KEYS) == 0
        with within(READ_S_MAX + SOCKET_S_MAX), shared.read(KEYS) as found:
            assert found == [None] * len(KEYS)
    time.sleep(TIDY_S_MAX + SLACK_S)
    assert all(all_right(shared, NUMBERS))


def test_one_stopped_server_costs_one_timeout(shared, mortals):
    """Then only the writer asks it again, and the other one has all."""
    put(shared)
    with mortals[0].stopped():
        with within(SOCKET_S_MAX + CONNECT_S_MAX):
            assert all(all_right(shared, NUMBERS))
        begun_s = time.monotonic()
        while time.monotonic() - begun_s < TIDY_S_MAX + 1:  # also when it is asked again
            with within(-SLACK_S / 5):
                assert shared.held(KEYS) == len(KEYS)
            time.sleep(0.01)


def test_a_slow_server_is_left_out(shared, mortals):
    """It answers, but late: once that is waited for."""
    put(shared)
    slow = first_of(shared, mortals)
    with slow.stopped():
        again = threading.Timer((SLOW_S_MAX + SOCKET_S_MAX) / 2, slow.go_on)
        again.start()
        assert shared.held(KEYS[:1]) == 1
        again.join()

    with slow.stopped(), within(-SLACK_S / 5):
        assert shared.held(KEYS) == len(KEYS)


def test_a_server_may_have_a_password(mortals, key_file, tmp_path):
    """It is in a file; without it nothing is stored, and why is told."""
    server = mortals[0]
    server.ask("CONFIG", "SET", "requirepass", "hunter2")
    password_file = tmp_path / "password"
    password_file.write_text("hunter2\n")
    password_file.chmod(0o600)
    url = address_of([server], key_file)
    with_it, without_it = open_store(f"{url}&password_file={password_file}"), open_store(url)

    assert with_it.put([page(0)])
    assert not without_it.put([page(1)])

    assert all_right(with_it, [0]) == [True]
    assert "uthentication" in without_it.stats().failure
    with_it.close()
    without_it.close()


def test_a_server_without_memory_sheds(mortals, key_file):
    """It says no, and keeps what it has; a session does not evict its own beginning."""
    server = mortals[0]
    used = int(server.ask("INFO", "memory")["used_memory"])
    server.ask("CONFIG", "SET", "maxmemory", used + 4 * 2**20)
    store = open_store(address_of([server], key_file))

    stored = [store.put([page(number)]) for number in range(300)]

    assert stored[0]
    assert not stored[-1]
    assert store.held([key_of(0), key_of(1)]) == 2
    assert store.stats().shed == stored.count(False)
    assert store.stats().failed
    assert store.put([page(1000, "another")])  # which evicts
    store.close()


@pytest.fixture
def certificate(tmp_path):
    """Of a server at 127.0.0.1, which vouches for itself; its key lies beside it."""
    made = tmp_path / "server.crt"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=holdfast"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(made), "-keyout", str(tmp_path / "server.key")]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return made


def test_a_server_may_be_asked_by_tls(mortals, key_file, certificate):
    """It must have a certificate that is trusted, and of its own name; else it is as if it did not answer."""
    server, port = mortals[0], free_port()
    for name, value in (("cert", certificate), ("key", certificate.with_suffix(".key")), ("ca-cert", certificate)):
        server.ask("CONFIG", "SET", f"tls-{name}-file", str(value))
    server.ask("CONFIG", "SET", "tls-auth-clients", "no")
    server.ask("CONFIG", "SET", "tls-port", port)

    def opened(host, rest=""):
        return open_store(f"rediss://{host}:{port}/0?key_file={key_file}{rest}")

    trusting = opened("127.0.0.1", f"&ca_file={certificate}")
    assert trusting.put([page(0)])
    assert all_right(trusting, [0]) == [True]
    assert server.ask("EXISTS", named(0)) == 1
    for other in (opened("127.0.0.1"), opened("localhost", f"&ca_file={certificate}")):
        assert not other.put([page(1)])
        assert "certificate" in other.stats().failure.lower()
        other.close()
    trusting.close()


# What others write there.


def test_a_bad_copy_is_read_from_the_other_server_and_repaired(shared, mortals):
    """One bit, on the server that is asked first."""
    put(shared)
    first = first_of(shared, mortals)
    good = first.ask("HGET", named(0), 0)
    first.ask("HSET", named(0), 0, bytes([good[0] ^ 1]) + good[1:])

    assert all_right(shared, [0]) == [True]

    settle(shared)
    assert first.ask("HGET", named(0), 0) == good
    assert shared.stats().damaged == 1


@pytest.mark.parametrize("answer", [b":1\r\n", b"*1\r\n:7\r\n", b"*2\r\n*0\r\n$-1\r\n", b"+OK\r\n"])
def test_a_server_whose_answers_are_none_costs_no_copy(servers, key_file, answer):
    """Neither those that the other one has, nor those that are written to it; and what it says is told."""
    servers[0].ask("FLUSHALL")
    liar = Liar(answer)
    store = open_store(address_of([servers[0], liar], key_file, copies=2))
    try:
        assert store.put([page(number) for number in NUMBERS])
        assert all(all_right(store, NUMBERS))
        assert store.held(KEYS) == len(KEYS)
        assert store.quarantine(KEYS[0], page(0).manifest.digest) is Quarantine.PENDING
        assert store.held(KEYS[:1]) == 0
        assert store.stats().failed
    finally:
        store.close(1)
        liar.close()


def test_a_missing_copy_is_written_again(shared, mortals):
    """Such as of a server that was started anew."""
    put(shared)
    first = first_of(shared, mortals)
    first.ask("FLUSHALL")

    assert all_right(shared, [0]) == [True]

    settle(shared)
    assert first.ask("EXISTS", named(0)) == 1


def test_a_repair_does_not_bring_back_what_was_erased(shared, mortals, monkeypatch):
    """It was found before, and is done after; and of more pages than this process remembers."""
    monkeypatch.setattr(redis_versions, "VERSIONS_MAX", 1)
    put(shared)
    first_of(shared, mortals).ask("FLUSHALL")
    erasures = shared._writes.erasures
    found, wrong = shared._copies.find(KEYS, time.monotonic() + 1, whole=True)
    assert len(found) == len(KEYS)
    assert wrong

    shared.erase("s")
    shared._writes.mend(found, wrong, erasures)

    assert shared.stats().pages == 0


def test_what_is_bad_everywhere_is_absent_and_removed(shared, mortals):
    """There is nothing to repair it from."""
    put(shared)
    for server in mortals:
        server.ask("HSET", named(0), 0, b"\0" * PAGE_BYTES)

    with shared.read([KEYS[0]]) as found:
        assert found == [None]

    settle(shared)
    assert [server.ask("EXISTS", named(0)) for server in mortals] == [0, 0]
    assert shared.stats().damaged == 2


@pytest.mark.parametrize("whole", [True, False])
def test_another_keys_page_is_not_this_ones(redis_store, servers, whole):
    """Valid pages, whole or only their bytes, that changed places."""
    put(redis_store, [0, 1])
    server = servers[0]
    if whole:
        server.ask("RENAME", named(0), "aside")
        server.ask("RENAME", named(1), named(0))
        server.ask("RENAME", "aside", named(1))
        assert redis_store.held([key_of(0)]) == redis_store.held([key_of(1)]) == 0
    else:
        first, second = (server.ask("HGET", named(number), 0) for number in (0, 1))
        server.ask("HSET", named(0), 0, second)
        server.ask("HSET", named(1), 0, first)

    assert all_right(redis_store, [0, 1]) == [False, False]

    settle(redis_store)
    assert redis_store.stats().damaged == 2


def test_an_older_version_is_not_read_again(redis_store, servers):
    """Neither one that was quarantined, whole as it was, nor its bytes under the head of the new one."""
    server = servers[0]
    put(redis_store, [0])
    old, old_bytes = server.ask("DUMP", named(0)), server.ask("HGET", named(0), 0)
    redis_store.quarantine(key_of(0), page(0).manifest.digest)
    assert redis_store.put([page(0, version=1)])

    server.ask("RESTORE", named(0), 0, old, "REPLACE")
    assert redis_store.held([key_of(0)]) == 0
    assert all_right(redis_store, [0]) == [False]

    assert redis_store.put([page(0, version=1)])
    server.ask("HSET", named(0), 0, old_bytes)
    assert all_right(redis_store, [0]) == [False]


@pytest.mark.parametrize("field", ["m", "0"])
def test_without_the_key_nothing_can_be_written(redis_store, servers, tmp_path, field):
    """Whoever has another key makes other seals."""
    put(redis_store, [0])
    mine = servers[0].ask("HGET", named(0), field)
    servers[0].ask("FLUSHALL")
    forger = open_store(address_of(servers[:1], made_key(tmp_path / "other.key")))
    assert forger.put([page(0, version=1)])
    forger.close()

    assert all_right(redis_store, [0]) == [False]
    assert servers[0].ask("HGET", named(0), field) != mine


HUGE = 64 * 2**20


@pytest.mark.parametrize("field", ["m", "0"])
def test_what_is_longer_than_it_may_be_is_not_fetched(redis_store, servers, monkeypatch, field):
    """Who can write to a server cannot fill an engine's memory: it is removed as it is."""
    put(redis_store, [0, 1])
    servers[0].ask("HSET", named(0), field, bytes(HUGE))
    asked = redis_server.Server._ask
    fetched = []

    def counted(server, words):
        answers = asked(server, words)
        pieces = [one for answer in answers for one in (answer if isinstance(answer, list) else [answer])]
        fetched.extend(len(one) for one in pieces if isinstance(one, bytes))
        return answers

    monkeypatch.setattr(redis_server.Server, "_ask", counted)

    assert all_right(redis_store, [0, 1]) == [False, True]

    settle(redis_store)
    assert sum(fetched) < 2 * PAGE_BYTES
    assert servers[0].ask("EXISTS", named(0)) == 0
    assert redis_store.stats().damaged == 1


def test_many_keys_are_looked_up_at_once(redis_store):
    """More than are asked for in one command, those that are not there among them."""
    put(redis_store, range(300))
    numbers = list(range(600))

    assert redis_store.held([key_of(number) for number in numbers]) == 300
    assert all_right(redis_store, numbers) == [True] * 300 + [False] * 300


def test_what_is_no_page_is_removed(redis_store, servers):
    """Of another type, or of no length."""
    servers[0].ask("SET", named(0), "text")
    servers[0].ask("HSET", named(1), "m", "")

    assert all_right(redis_store, [0, 1]) == [False, False]
    put(redis_store, [0, 1])

    assert all_right(redis_store, [0, 1]) == [True, True]


def test_a_page_of_which_a_part_is_missing_is_not_there(redis_store, monkeypatch):
    """What was written of it is thrown away; here its head, which expires before the rest comes."""
    monkeypatch.setattr(redis_server, "HALF_WRITTEN_MS_MAX", 0)

    assert not redis_store.put([page(0)])

    assert redis_store.stats().shed == 1
    assert redis_store.stats().pages == 0


def test_seals_of_equal_pages_are_not_alike():
    """Not even under one key, written twice."""
    seals, one = Seals(b"k" * 32), page(0)

    heads = [seals.made(key, one.manifest, one.payload, 1) for key in (one.key, one.key, key_of(1))]

    assert len({head.payload_mac for head in heads}) == 3
    assert seals.fits(one.key, heads[0], [one.payload])
    assert not seals.fits(key_of(1), heads[0], [one.payload])


# What is kept, and for how long.


def test_large_pages_lie_in_pieces(redis_store, servers):
    """None above 1 MiB."""
    large = page(0, size=5 * 2**19 + 1)
    assert redis_store.put([large])

    assert [servers[0].ask("HSTRLEN", named(0), field) for field in (0, 1, 2, 3)] == [2**20, 2**20, 2**19 + 1, 0]
    with redis_store.read([large.key]) as (found,):
        assert right(found)


def test_who_was_there_longest_ago_makes_room(servers, key_file):
    """Its last pages go first; a session that is larger than the store keeps its beginning."""
    servers[0].ask("FLUSHALL")
    store = open_store(address_of(servers[:1], key_file, size="8MiB"))
    put(store, range(100), "old")
    put(store, range(1000, 1200), "new")

    assert 0 < store.held([key_of(number) for number in range(100)]) < 100
    assert store.held([key_of(number) for number in range(1000, 1200)]) == 200
    store.put([page(number, "large") for number in range(2000, 2400)])
    assert store.held([key_of(number) for number in range(2000, 2400)]) >= 200
    assert store.stats().bytes <= 8 * 2**20
    store.close()


def test_pages_go_by_themselves_after_the_retention(servers, key_file):
    """Also where no engine runs: Redis lets them expire, and what lists them is put right by the next engine."""
    servers[0].ask("FLUSHALL")
    url = address_of(servers[:1], key_file) + "&retention=1s"
    store = open_store(url)
    put(store, [0])
    store.close()
    time.sleep(1.2)
    assert servers[0].ask("EXISTS", named(0)) == 0

    store = open_store(url)
    settle(store)
    store.sweep(b"fingerprint")
    assert (store.stats().pages, store.stats().bytes, store.sessions()) == (0, 0, [])
    store.close()


def test_erasing_everything_leaves_what_is_not_ours(redis_copies, servers):
    """Only what begins with our prefix goes, and all of that."""
    put(redis_copies)
    servers[0].ask("SET", "theirs", "1")

    assert redis_copies.erase_all().pages == len(NUMBERS)

    assert [server.ask("KEYS", "*") for server in servers] == [[b"theirs"], []]


# The address.


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("a:6379/0?key_file={missing}", "openssl rand -hex 32"),
        ("a:6379/0?key_file={open}", "chmod 600"),
        ("a:6379/0?key_file={short}", "64 hexadecimal digits"),
        ("a:6379/0", "key_file="),
        ("a,b/0?copies=3&key_file={good}", "copies=1"),
        ("a,a/0?key_file={good}", "each server once"),
        ("a:0/0?key_file={good}", "host and port"),
        ("a/0?key_file={good}&size=tiny", "size=8GiB"),
        ("a/0?key_file={good}&colour=red", "copies, size"),
        ("alice:hunter2@a/0?key_file={good}", "password_file="),
        ("a/0?key_file={good}&ca_file=/etc/ssl/ca.pem", "write rediss://"),
    ],
)
def test_a_wrong_address_is_refused_with_what_to_write(tmp_path, rest, said):
    """And without what is secret in it."""
    names = {name: made_key(tmp_path / name) for name in ("good", "open", "short", "missing")}
    names["open"].chmod(0o640)
    names["short"].write_text("short-secret")
    names["missing"].unlink()

    with pytest.raises(StoreRefused) as refused:
        open_store("redis://" + rest.format(**names))

    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert "short-secret" not in str(refused.value)
