"""How the doctor looks: at heads of answers, at ports, at disks; with real sockets and files."""

import asyncio
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.config_file import from_upstreams
from gateway.doctor.facts import Gateway, Store
from gateway.doctor.knock import HEAD_BYTES_MAX, knock
from gateway.doctor.listening import listening
from gateway.doctor.surroundings import machine, stores
from gateway.stream.leg import Target, UpstreamLimits
from gateway.stream.upstream import Upstream

DATED = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\nDate: Sun, 29 Nov 2026 12:00:00 GMT\r\ncontent-length: 0\r\n\r\n"
DATE_S = 1_795_953_600.0
WAIT_S = 5.0


@contextmanager
def server(answer: bytes | None, host: str = "127.0.0.1") -> Iterator[tuple[int, list[bytes]]]:
    """One that answers every connection with this and hangs up; None says nothing. Its port, and what it was asked."""
    asked: list[bytes] = []
    held: list[socket.socket] = []
    with socket.create_server((host, 0)) as door:

        def serve() -> None:
            while True:
                try:
                    peer, _ = door.accept()
                except OSError:
                    return
                if answer is None:
                    held.append(peer)
                    continue
                asked.append(peer.recv(65_536))
                peer.sendall(answer)
                peer.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield door.getsockname()[1], asked
        door.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for peer in held:
            peer.close()


async def test_a_knock_tells_status_and_date_and_shows_the_key_only_when_told_to():
    """The key goes where it belongs, and nowhere else."""
    with server(DATED) as (port, asked):
        target = Target("a", "127.0.0.1", port, key="sesame")
        with_key = await knock(target, "/health", WAIT_S, keyed=True)
        without = await knock(target, "/v1/models", WAIT_S, keyed=False)

    assert (with_key.status, with_key.date_s, without.status) == (200, DATE_S, 200)
    assert with_key.connect_s is not None
    assert with_key.answer_s is not None
    assert b"authorization: Bearer sesame\r\n" in asked[0]
    assert asked[1].startswith(b"GET /v1/models HTTP/1.1\r\n")
    assert b"sesame" not in asked[1]


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200", b"\xff" * 100 + b"\r\n\r\n", b"x" * (HEAD_BYTES_MAX + 100),
     DATED.replace(b"Sun, 29 Nov 2026", b"some day or other")],
)  # fmt: skip
async def test_a_knock_survives_whatever_is_answered(answer):
    """Nothing, half a head, no HTTP, too long a head, and a date that is none."""
    with server(answer) as (port, _):
        seen = await knock(Target("a", "127.0.0.1", port), "/", WAIT_S, keyed=False)

    assert seen.date_s is None
    assert seen.connect_s is not None
    assert seen.status == (200 if answer.startswith(b"HTTP/1.1 200 OK") else 0)


async def test_a_knock_is_over_in_time():
    """A server that says nothing costs the wait, and is known to have taken the connection."""
    with server(None) as (port, _):
        seen = await knock(Target("a", "127.0.0.1", port), "/", 0.2, keyed=False)

    assert seen.connect_s is not None
    assert (seen.status, seen.answer_s) == (0, None)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_where_a_port_listens_is_seen(host):
    """As addresses, of both families."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as door:
        port = door.getsockname()[1]
        assert host in (listening(port) or ())  # others may have the same port, of the other family
        client = socket.create_connection(("::1" if family == socket.AF_INET6 else "127.0.0.1", port), 5)
        peer, _ = door.accept()
    with client, peer:  # a connection is not somebody who listens
        assert host not in (listening(port) or ())


async def test_page_stores_are_looked_for_where_engines_have_them(tmp_path: Path):
    """A directory on this machine, each server of many; of a directory elsewhere nothing can be said."""
    with server(b"-NOAUTH\r\n") as (port, _), socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        gone = nobody.getsockname()[1]
        redis = f"redis://127.0.0.1:{port},127.0.0.1:{gone}/0?copies=2&key_file=/k"
        found = await stores(
            [(f"lmdb://{tmp_path}?size=1GiB", True), (f"lmdb://{tmp_path}/no", True), ("lmdb:///dev/shm/x", False),
             (redis, False), (redis, True), ("other://x", True), ("redis://:x:y/0", False)]
        )  # fmt: skip

    assert found[:4] == [
        Store(str(tmp_path)),
        Store(f"{tmp_path}/no", "there is no such directory"),
        Store(f"127.0.0.1:{port}"),
        Store(f"127.0.0.1:{gone}", "took no connection within 1 s"),
    ]
    assert [bool(one.why) for one in found[4:]] == [True]


async def test_looking_at_the_machine_leaves_nothing_behind(tmp_path: Path):
    """A directory that is not there is not made; one that is, is written to without a name."""
    upstream = Upstream(UpstreamLimits())
    config = from_upstreams(["http://127.0.0.1:9"], data=tmp_path / "a" / "b", listen={"port": 0})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))  # a gateway raises its own
    try:
        before = await machine(config, upstream)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (tmp_path / "a" / "b").mkdir(parents=True, mode=0o755)
    after = await machine(config, upstream)
    (tmp_path / "a" / "file").touch()
    blocked = await machine(config.model_copy(update={"data": tmp_path / "a" / "file" / "x"}), upstream)
    await upstream.close()

    assert (before.made, before.writable, before.shared, before.port) == (False, "", False, Gateway.NOBODY)
    assert before.files_max == (2**63 if hard == resource.RLIM_INFINITY else hard)
    assert (after.made, after.shared) == (True, True)
    assert after.free
    assert after.kind
    assert blocked.writable == f"{tmp_path}/a/file is no directory"
    assert list((tmp_path / "a" / "b").iterdir()) == []


async def test_who_has_an_admin_port_of_any_worker_is_told(tmp_path: Path):
    """The second of three workers could not start; but for one address of many, or a gateway that drains."""
    body = b'{"ready":false,"why":["it drains"]}'
    gateway = b"HTTP/1.1 503 Drains\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    upstream = Upstream(UpstreamLimits())

    async def taken(answer: bytes, host: str = "127.0.0.1", workers: int = 3) -> bool:
        with server(answer, host) as (port, _):
            listen = {"port": 0, "admin_port": port - 1}
            config = from_upstreams(["http://127.0.0.1:9"], data=tmp_path, listen=listen, workers=workers)
            return port in (await machine(config, upstream)).admin_taken

    found = [
        await taken(DATED), await taken(DATED, "0.0.0.0"), await taken(DATED, "127.0.0.2"), await taken(gateway),
        await taken(DATED, workers=1),
    ]  # fmt: skip
    await upstream.close()

    assert found == [True, True, False, False, False]


async def test_who_has_the_public_port_is_told(tmp_path: Path):
    """A gateway that is ready, one that is not, and something else."""
    upstream = Upstream(UpstreamLimits())
    found = []
    for body in (b'{"ready":true,"why":[]}', b'{"ready":false,"why":["model m: a is down"]}', b"<html>"):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        with server(head + body) as (port, _):
            config = from_upstreams(["http://127.0.0.1:9"], data=tmp_path, listen={"port": port})
            seen = await machine(config, upstream)
            found.append((seen.port, seen.why))
    await upstream.close()
    await asyncio.sleep(0)

    assert found == [(Gateway.READY, ""), (Gateway.NOT_READY, "model m: a is down"), (Gateway.OTHERS, "")]
