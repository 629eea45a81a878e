"""The cutting proxy cuts where it was told to, and nowhere else."""

import asyncio
import itertools
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from loadtests.cutting_proxy import Cut, CuttingProxy, seeded_plan
from loadtests.http_messages import MessageReader, Part
from loadtests.token_count import TokenCount
from tests.loadtests.raw_client import Client, ask

CHAT = "/v1/chat/completions"
Front = Callable[..., Awaitable[tuple[CuttingProxy, int]]]


@pytest.fixture
async def front(stub) -> AsyncIterator[Front]:
    """Put proxies in front of the stub; all stop with the test."""
    proxies: list[CuttingProxy] = []

    async def one(plan: Any = None) -> tuple[CuttingProxy, int]:
        proxies.append(CuttingProxy(plan))
        return proxies[-1], await proxies[-1].start("127.0.0.1", stub.port)

    yield one
    for proxy in proxies:
        await proxy.stop()


def chat(tokens: int = 40, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    common = {"model": "tiny", "messages": messages, "stream": True, "return_token_ids": True}
    return {**common, "max_tokens": tokens, "ignore_eos": True, **more}


async def test_what_is_not_cut_passes_unchanged(front, stub):
    """Without a plan, answers through the proxy are the upstream's, plain and streamed."""
    _, port = await front()
    headers = {"x-request-id": "same"}

    for request in (chat(), chat(stream=False)):
        through, direct = [await ask(one, CHAT, request, headers=headers) for one in (port, stub.port)]
        assert through.ended == "clean"
        assert len(through.body) == len(direct.body)
        assert through.ids == direct.ids


async def test_it_leads_elsewhere_when_it_is_told_to(front, stub):
    """New connections reach the other upstream; those that are open stay where they are."""
    proxy, port = await front()
    open_already = Client(port)
    await open_already.ask(CHAT, chat(stream=False))
    before = stub.stats()["requests"]
    with socket.socket() as nowhere:  # it has its port, and does not listen
        nowhere.bind(("127.0.0.1", 0))
        proxy.lead(*nowhere.getsockname())
        kept = await open_already.ask(CHAT, chat(stream=False))
        lost = await ask(port, CHAT, chat())
    await open_already.close()

    assert (kept.status, kept.ended) == (200, "clean")
    assert (lost.ended in ("fin", "reset"), bytes(lost.body)) == (True, b"")
    assert stub.stats()["requests"] == before + 1


@pytest.mark.parametrize("seed", range(25))
async def test_cut_comes_after_exactly_so_many_tokens(front, seed):
    """The client has the tokens that were ordered, whole, plus at most the extra bytes, then a reset."""
    rng = random.Random(seed)
    cut = Cut(rng.randint(0, 38), rng.randint(0, 150), "rst")
    proxy, port = await front(lambda number, request: cut)

    seen = await ask(port, CHAT, chat())

    assert seen.ended == "reset"
    assert len(seen.ids) == cut.after_tokens
    assert proxy.cuts[0].tokens == cut.after_tokens
    assert proxy.cuts[0].body_bytes == len(seen.body)


async def test_every_extra_byte_moves_the_cut_by_one(front):
    """Cuts at each of the bytes behind an event give prefixes of one stream, one byte apart on the wire."""
    ordered = iter(Cut(5, extra) for extra in range(60))
    _, port = await front(lambda number, request: next(ordered))

    bodies = [(await ask(port, CHAT, chat(), headers={"x-request-id": "r"})).body for _ in range(60)]

    sizes = [len(body) for body in bodies]
    assert sizes == sorted(sizes)
    assert all(later - earlier in (0, 1) for earlier, later in itertools.pairwise(sizes))
    assert sizes[-1] - sizes[0] == 60 - 1 - len(b"\r\nfe\r\n")


async def test_fin_and_stall_end_differently_from_a_reset(front, stub):
    """A FIN ends the stream without its last chunk; a stall keeps the socket until the client leaves."""
    ordered = iter([Cut(3, 0, "fin"), Cut(3, 7, "stall")])
    proxy, port = await front(lambda number, request: next(ordered))

    closed = await ask(port, CHAT, chat())
    stalled = await ask(port, CHAT, chat(), until=lambda seen: len(proxy.cuts) == 2 and len(seen.ids) >= 3)

    assert (closed.ended, len(closed.ids)) == ("fin", 3)
    assert (stalled.ended, len(stalled.ids)) == ("left", 3)


async def test_plan_sees_each_request_of_a_connection(front):
    """On a keep-alive connection each stream is asked for with its request; only that one is cut."""
    asked: list[tuple[int, bool]] = []

    def plan(number: int, request: bytes) -> Cut | None:
        asked.append((number, b'"max_tokens": 31' in request))
        return Cut(6) if asked[-1][1] else None

    proxy, port = await front(plan)
    async with Client(port) as client:
        seen = [await client.ask(CHAT, chat(tokens, stream=stream)) for tokens, stream in
                ((5, True), (31, False), (7, True), (31, True))]  # fmt: skip

    assert [one.ended for one in seen] == ["clean", "clean", "clean", "reset"]
    assert asked == [(0, False), (2, False), (3, True)]
    assert [(made.number, made.tokens) for made in proxy.cuts] == [(3, 6)]


async def test_stream_that_ends_before_its_cut_is_not_cut(front):
    """A cut beyond the end of the stream does nothing, and is not recorded."""
    proxy, port = await front(lambda number, request: Cut(500))

    seen = await ask(port, CHAT, chat())

    assert seen.ended == "clean"
    assert not proxy.cuts


async def test_stop_closes_every_socket(front):
    """Stopping the proxy ends streams that are open."""
    proxy, port = await front(lambda number, request: Cut(2, 0, "stall"))
    asking = asyncio.create_task(ask(port, CHAT, chat()))
    async with proxy.made:
        await proxy.made.wait_for(lambda: len(proxy.cuts) == 1)

    await proxy.stop()

    assert (await asking).ended in ("fin", "reset")


def test_seeded_plan_is_repeatable():
    """The same seed cuts the same streams at the same places."""
    one, two = (seeded_plan(random.Random(3), 3, 50, 100) for _ in range(2))

    assert [one(number, b"") for number in range(30)] == [two(number, b"") for number in range(30)]


@pytest.mark.parametrize("seed", range(20))
def test_count_does_not_depend_on_how_bytes_are_split(seed):
    """Ids are counted alike in one piece and in many, never those of prompts or inside of strings."""
    event = (
        b'data: {"choices":[{"prompt_token_ids":[1,2,3],"delta":{"content":",\\"token_ids\\":[7,8]"},'
        b'"token_ids":[10, 200,-3]}]}\n\n'
    )
    stream, rng = (
        event * 5 + b'data: {"token_ids":[],"x":"token_ids"}\n\n' + b'data: {"token_ids":[5',
        random.Random(seed),
    )
    count, offset, reached = TokenCount(), 0, None

    while offset < len(stream):
        piece = stream[offset : offset + rng.randint(1, 40)]
        found = count.feed(piece, 7)
        if found is not None:
            reached = offset + found
            count.feed(piece[found:])
            break
        offset += len(piece)

    assert reached == 3 * len(event)  # the event that brings the seventh is let through whole
    whole = TokenCount()
    whole.feed(stream)
    assert whole.tokens == 15


@pytest.mark.parametrize("seed", range(20))
def test_messages_are_split_alike_however_they_arrive(seed):
    """Heads, bodies and ends are found at the same places, and no byte is lost."""
    stream = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=1\r\n0123456789\r\n0\r\nx: y\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
        b"HTTP/1.1 204 No Content\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    )
    rng, reader, offset = random.Random(seed), MessageReader(responses=True), 0
    parts: list[tuple[Part, bytes]] = []

    while offset < len(stream):
        size = rng.randint(1, 30)
        parts += reader.feed(stream[offset : offset + size])
        offset += size

    assert b"".join(run for _, run in parts) == stream
    assert b"".join(run for part, run in parts if part is Part.BODY) == b"abc0123456789hello"
    assert sum(part is Part.END for part, _ in parts) == 4
