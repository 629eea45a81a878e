"""What the doctor says of what was seen: each thing that can be wrong, its level, and what to do instead."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.config_times import Timeouts
from gateway.doctor.facts import Finding, Gateway, Level, Machine, Redis, Server, Store, Told, Without
from gateway.doctor.families import compared
from gateway.doctor.home import of_ledger, of_machine, of_stores
from gateway.doctor.servers import judged
from gateway.fleet.page_status import Continues, PageStatus
from gateway.fleet.page_status import Store as Outside
from guards.health import Probe

OK, WARN, BAD = Level
ALL = ("tokenizer", "chat template", "sampling defaults")
REPLAYS = Continues(True, frozenset())
STATUS = PageStatus(0.0, 1, True, (), ("1.0",), ("aa" * 8,), {}, {}, {}, 0, None, None, 0, continues=REPLAYS)
TOLD = Told(STATUS, store="redis://a:1/0")
WELL = Server(
    "one", "m", True, False, Probe.GOOD, connect_s=0.001, health_s=0.002, ahead_s=0.1, unsure_s=0.8, version="0.32.0",
    serves={"m": 4096}, allowed=True, open=True, developer=False, listens=("127.0.0.1",), told=TOLD,
    compared={"m": ALL},
)  # fmt: skip
FAR = replace(WELL, local=False, keyed=True, open=False, listens=None)
MACHINE = Machine("/data", True, free=50 << 30, kind="ext4", sync_s=0.001, files_max=65536, files_wanted=24704)
REDIS = Redis("r:1", answer_s=0.001, version="7.2.4", policy="noeviction", fsync="always", begun=True)


def status(**more: Any) -> Told:
    return replace(TOLD, status=STATUS._replace(**more))


NO_REPLAYS = status(continues=None, continues_not="a V2 runner")


def worst(findings: list[Finding]) -> list[tuple[Level, str]]:
    """What is not ok."""
    return [(one.level, one.said) for one in findings if one.level is not OK]


def test_of_a_server_that_is_well_nothing_is_said_but_that():
    """Four lines, without anything to do."""
    found = list(judged(WELL, Timeouts(), "1.0"))

    assert [one.level for one in found] == [OK] * 4
    assert [one.said for one in found] == [
        "answers in 2.0 ms; vLLM 0.32.0",
        "serves m (4096 tokens)",
        "asks for no key, and listens on loopback only",
        "Holdfast's plugin 1.0 guards its KV pages",
    ]
    assert not any(one.instead for one in found)
    assert worst(list(judged(FAR, Timeouts(), "1.0"))) == []


@pytest.mark.parametrize(
    ("server", "level", "said"),
    [
        (replace(WELL, probe=Probe.REFUSED), BAD, "cannot be reached"),
        (replace(WELL, probe=Probe.DEAD), BAD, "its engine is dead"),
        (replace(WELL, probe=Probe.SILENT), BAD, "does not answer"),
        (replace(WELL, health_s=0.6), WARN, "answers /health after 0.60 s"),
        (replace(WELL, health_s=1.2), BAD, "answers /health after 1.20 s"),
        (replace(WELL, connect_s=0.3), WARN, "takes a connection after 0.30 s"),
        (replace(WELL, connect_s=0.6), BAD, "takes a connection after 0.60 s"),
        (replace(WELL, serves={"x": 1, "y": None}), BAD, "does not serve m, but x (1 tokens), y (? tokens)"),
        (replace(WELL, model=None, serves={}), BAD, "serves no model"),
        (replace(WELL, serves=None, allowed=None), BAD, "does not tell what it serves"),
        (replace(FAR, allowed=False), BAD, "refuses its key"),
        (replace(WELL, allowed=False, open=False), BAD, "asks for a key, and none is configured"),
        (replace(WELL, keyed=True), WARN, "answers without its key, though one is configured"),
        (replace(FAR, open=True), BAD, "answers without a key: whoever reaches that port is bound by no budget"),
        (replace(WELL, listens=("127.0.0.1", "0.0.0.0")), BAD,
         "answers without a key, and listens on 0.0.0.0: whoever reaches that port is bound by no budget"),
        (replace(WELL, developer=True), WARN,
         "has vLLM's routes for developers, open without a key: /sleep, /collective_rpc and others"),
        (replace(FAR, developer=True), BAD,
         "has vLLM's routes for developers, open without a key: /sleep, /collective_rpc and others"),
        (replace(WELL, ahead_s=4.0), WARN, "its clock is 4 s ahead of ours"),
        (replace(WELL, ahead_s=-75.0), BAD, "its clock is 75 s behind ours"),
        (replace(WELL, told=None), WARN,
         "has no Holdfast plugin: its KV pages are not verified, nor found elsewhere after a failover"),
        (replace(WELL, told=None, without=Without.ROUTES), WARN,
         "has Holdfast's plugin, but not its routes: the gateway cannot see how its KV pages are"),
        (replace(WELL, told=None, without=Without.CONNECTOR), WARN,
         "has the routes of Holdfast's plugin, but guards no KV pages"),
        (replace(WELL, told=None, without=Without.SENSE), WARN,
         "says something else than Holdfast's plugin at /holdfast/status"),
        (replace(WELL, told=None, without=Without.ANSWER), WARN, "did not answer in time how its KV pages are"),
        (replace(WELL, told=status(protected=False, unprotected=("async-scheduling",))), WARN,
         "verifies KV pages that are hit, but does not protect running requests: async-scheduling"),
        (replace(WELL, told=status(corrupt={("changed", "gate"): 3, ("absent", "gate"): 9})), BAD,
         "found 3 KV pages that went bad in its memory since it was started"),
        (replace(WELL, told=status(versions=("0.9",))), WARN, "its plugin is 0.9, this gateway 1.0"),
        (replace(WELL, told=status(store=Outside("lmdb", 0.0, {"shed": 5, "lost": 1, "saved": 9}))), WARN,
         "pages did not reach its store, or were not there any more: 5 shed, 1 lost"),
        (replace(WELL, told=status(store=Outside("lmdb", 45.2, {"shed": 0}))), WARN, "pages wait 45 s to be stored"),
        (replace(WELL, told=NO_REPLAYS), WARN, "takes over no stream by replaying it: a V2 runner"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_server_is_one_line_with_what_to_do(server, level, said):
    """One finding for one fault, of this level, and with a remedy."""
    found = list(judged(server, Timeouts(), "1.0"))

    assert worst(found) == [(level, said)]
    (one,) = (one for one in found if one.level is not OK)
    assert one.about == "one"
    assert one.instead
    assert not any("\n" in word for word in one)


def test_an_older_plugin_that_says_nothing_of_replays_is_not_blamed():
    """Neither by itself nor beside others."""
    older = status(continues=None)
    assert worst(list(judged(replace(WELL, told=older), Timeouts(), "1.0"))) == []
    assert worst(of_m(two(told=older))) == []


def test_a_clock_is_not_held_against_a_server_that_answers_slowly():
    """A date is as old as its way: what cannot be known is not said."""
    assert worst(list(judged(replace(WELL, ahead_s=2.5, unsure_s=0.8), Timeouts(), ""))) == []


def two(**more: Any) -> list[Server]:
    return [WELL, replace(WELL, name="two", **more)]


def of_m(servers: list[Server]) -> list[Finding]:
    return list(compared(servers, ["m"], frozenset({"m"})))


def test_servers_that_are_alike_are_one_line():
    """By what they were compared is told."""
    assert of_m(two()) == [Finding(OK, "m", "2 servers are alike: tokenizer, chat template, sampling defaults")]
    assert of_m(two(compared={"m": ("tokenizer",)})) == [Finding(OK, "m", "2 servers are alike: tokenizer")]


@pytest.mark.parametrize(
    ("servers", "level", "said"),
    [
        ([], BAD, "none of its 0 servers can serve it"),
        ([replace(WELL, probe=Probe.DEAD)], BAD, "none of its 1 servers can serve it"),
        (two(probe=Probe.REFUSED), WARN, "one server of 2 can serve it"),
        (two(serves={"x": 1}), WARN, "one server of 2 can serve it"),
        (two(version="0.31.0"), WARN, "versions of vLLM differ: one 0.32.0, two 0.31.0"),
        (two(serves={"m": 8192}), WARN, "windows differ: one 4096, two 8192"),
        (two(told=status(fingerprints=("bb" * 8,))), WARN,
         "weights, configuration or layout differ: one aaaaaaaa, two bbbbbbbb"),
        (two(apart={"m": ("tokenizer", "sampling defaults")}), BAD,
         "two has another tokenizer and sampling defaults than most: no stream goes on there, or comes from there"),
        (two(compared={}), WARN, "its servers could not be compared"),
        (two(told=None), WARN, "two without Holdfast's plugin, others with it"),
        (two(told=replace(TOLD, store="")), WARN, "page stores differ: one, two"),
        (two(told=NO_REPLAYS), WARN, "only some take over streams by replaying them: one"),
    ],
)  # fmt: skip
def test_what_servers_of_a_model_differ_in_is_named(servers, level, said):
    """One finding, with a remedy; and then they are not said to be alike."""
    found = of_m(servers)

    assert worst(found) == [(level, said)]
    assert next(one for one in found if one.level is not OK).instead
    if level is BAD or ("differ:" in said and "stores" not in said):
        assert not any("alike" in one.said for one in found)


def test_a_model_without_a_tokenizer_of_its_own_is_told_once():
    """Only where models are configured: discovered ones can have none."""
    (found,) = worst(list(compared(two(), ["m"], frozenset())))
    assert found == (WARN, "text after a failover is asked of its servers")
    discovered = [replace(one, model=None) for one in two()]
    assert worst(list(compared(discovered, [], frozenset()))) == []


@pytest.mark.parametrize(
    ("machine", "level", "about", "said"),
    [
        (replace(MACHINE, writable="no permission"), BAD, "/data", "cannot be written: no permission"),
        (replace(MACHINE, free=50 << 20), BAD, "/data", "its disk has 50 MiB left"),
        (replace(MACHINE, free=500 << 20), WARN, "/data", "its disk has 500 MiB left"),
        (replace(MACHINE, kind="tmpfs"), WARN, "/data", "lies in memory (tmpfs): what was spent is forgotten with it"),
        (replace(MACHINE, kind="nfs4"), WARN, "/data",
         "lies on a network (nfs4), where SQLite's locks may not hold"),
        (replace(MACHINE, sync_s=0.25), WARN, "/data", "its disk takes 250 ms to keep a small write"),
        (replace(MACHINE, shared=True), WARN, "/data", "others on this machine may look into it"),
        (replace(MACHINE, files_max=1024), WARN, "open files",
         "at most 1024, for all clients 24704 are needed: fewer are let in"),
        (replace(MACHINE, host="0.0.0.0", keys=False), BAD, "public port",
         "it is to listen on 0.0.0.0, and there is no API key: it will not start"),
        (replace(MACHINE, port=Gateway.OTHERS), BAD, "public port", "something else than a gateway has it"),
        (replace(MACHINE, port=Gateway.NOT_READY, why="model m: x is down"), WARN, "public port",
         "a gateway runs here and is not ready: model m: x is down"),
        (replace(MACHINE, admin_taken=(8081, 8083)), BAD, "admin port",
         "something else than a gateway has 8081, 8083: it will not start"),
        (replace(MACHINE, admin_host="0.0.0.0"), WARN, "admin port",
         "can be reached from other machines, on 0.0.0.0: only its key guards it"),
        (replace(MACHINE, admin_listens=("10.0.0.1",)), WARN, "admin port",
         "can be reached from other machines, on 10.0.0.1: only its key guards it"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_machine_is_one_line_with_what_to_do(machine, level, about, said):
    """One finding for one fault."""
    found = list(of_machine(machine))

    assert worst(found) == [(level, said)]
    (one,) = (one for one in found if one.level is not OK)
    assert (one.about, bool(one.instead)) == (about, True)
    assert worst(list(of_machine(MACHINE))) == []


@pytest.mark.parametrize(
    ("redis", "level", "said"),
    [
        (Redis("r:1", why="no answer within 0.5 s"), BAD, "no answer within 0.5 s"),
        (replace(REDIS, version="6.2.1"), BAD, "Redis 6.2.1"),
        (replace(REDIS, version=""), BAD, "Redis ?"),
        (replace(REDIS, policy="allkeys-lru", memory_max=10), BAD,
         "forgets budgets when it is full (maxmemory-policy allkeys-lru): gateways refuse it"),
        (replace(REDIS, policy="allkeys-lru"), WARN,
         "maxmemory-policy is allkeys-lru: with a maxmemory it would forget budgets"),
        (replace(REDIS, append_only=False), WARN,
         "forgets at a restart what was spent since its last snapshot (appendonly no)"),
        (replace(REDIS, fsync="everysec"), WARN,
         "may forget the last second when its machine dies (appendfsync everysec)"),
        (replace(REDIS, begun=False), BAD, "is empty: no gateway may use it"),
        (replace(REDIS, answer_s=0.2), WARN, "answers in 200 ms"),
        (replace(REDIS, ahead_s=-3.0), WARN, "its clock is 3 s behind ours"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_ledgers_redis_is_one_line_with_what_to_do(redis, level, said):
    """One finding for one fault; of one that is well, that it is."""
    (found,) = of_ledger([redis], 0)

    assert (found.level, found.about, found.said) == (level, "ledger r:1", said)
    assert found.instead
    assert list(of_ledger([REDIS], 0)) == [
        Finding(OK, "ledger r:1", "Redis 7.2.4 answers in 1 ms and keeps what it has")
    ]


def test_a_ledger_that_lacks_replicas_grants_nothing():
    """The number that the configuration wants is compared with what is there."""
    (found,) = of_ledger([replace(REDIS, replicas=1)], 2)
    assert (found.level, found.said) == (BAD, "has 1 replicas, ledger.replicas wants 2: it grants nothing")
    assert worst(list(of_ledger([replace(REDIS, replicas=2)], 2))) == []


def test_a_page_store_that_cannot_be_seen_from_here_is_no_more_than_a_warning():
    """Engines use it, the gateway does not."""
    found = list(of_stores([Store("a:1"), Store("/dev/shm/x", "there is no such directory")]))
    assert [(one.level, one.about) for one in found] == [(OK, "page store a:1"), (WARN, "page store /dev/shm/x")]
