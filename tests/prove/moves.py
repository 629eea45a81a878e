"""Streams that go on at another server: asked for, and what is known of each move."""

import asyncio
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from tokenizers import Tokenizer

from gateway.local.engine import Engine
from tests.answers import Answer, ask
from tests.e2e.cuts import AT_ONCE
from tests.processes import Gateway, until
from tests.prove.state import SEED, STATE, quantile
from tests.shared_pages import PROMPT_TOKENS, UNTRIED, Kind, conversation, tail

AROUND_S = 0.1  # tokens are kept so long before a pause and after it
WRITTEN_S_MAX, TOLD_S = 30.0, 60.0  # the journal is written in groups; servers are asked every few seconds
Asked = tuple[Kind, dict[str, Any], Answer]  # a request, and its uninterrupted answer


@contextmanager
def folder_of(step: str) -> Iterator[Path]:
    """A folder of a step's own, removed after it; not if it fails, for logs are in it."""
    folder = STATE / f"{step}-{os.getpid()}"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def front(folder: Path, urls: Sequence[str], model: Path, **more: Any) -> Gateway:
    """A gateway before these servers: all requests go to the first, whatever others had before.

    None is raced for its silence: a pause is a move's. Nor do requests wait for room, or go where there is some. Waits
    until the gateway knows what its servers can continue.
    """
    folder.mkdir()
    said: dict[str, Any] = {"limits": {"hedges": 0}, "routing": {"sessions": False, "prefixes": False}}
    said |= {"admission": {"on": False}, **more}
    gateway = Gateway(folder, urls, model="tiny", tokenizer=model / "tokenizer.json", **said)
    try:
        until(lambda: all(map(_told, _replicas(gateway))), TOLD_S)
    except BaseException:
        gateway.kill()
        raise
    return gateway


def _replicas(gateway: Gateway) -> list[dict[str, Any]]:
    told: dict[str, list[dict[str, Any]]] = json.loads(gateway.get("/admin/replicas", gateway.admin_url)[1])
    return told["replicas"]


def _told(replica: dict[str, Any]) -> bool:
    """Whether the gateway knows what this one can continue."""
    pages = replica["pages"]
    return bool(pages["continues"] or (pages["continues_not"] and UNTRIED not in pages["continues_not"]))


def asked(kinds: Sequence[Kind], engine: Engine, model: Path, seed: int, answer_tokens: int) -> list[Asked]:
    """One long conversation of each kind, with its answer from a server that nobody disturbs.

    The gateway's requests have salts of their own: they hit nothing of what is computed here.
    """
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    bodies = [conversation(kind, tokenizer, SEED + seed, PROMPT_TOKENS, answer_tokens) for kind in kinds]
    gate = asyncio.Semaphore(AT_ONCE)

    async def all_of_them() -> list[Answer]:
        async with aiohttp.ClientSession() as session:

            async def one(kind: Kind, body: dict[str, Any]) -> Answer:
                async with gate:
                    return await ask(session, engine.url, body, path=kind.path)

            return await asyncio.gather(*map(one, kinds, bodies))

    found = asyncio.run(all_of_them())
    assert all(one.done and one.error is None for one in found), [one.error for one in found]
    return list(zip(kinds, bodies, found, strict=True))


def some_of(all_of_them: Sequence[Asked], number: int) -> list[Asked]:
    """As many as are asked for at once, of all kinds by turns."""
    return [all_of_them[(number * AT_ONCE + one) % len(all_of_them)] for one in range(AT_ONCE)]


def streams(
    session: aiohttp.ClientSession, url: str, key: str, some: Sequence[Asked]
) -> "dict[asyncio.Task[Answer], Answer]":
    """Ask for these; the tasks, and the answers as they grow."""
    started = {}
    for kind, body, _ in some:
        answer = Answer()
        started[asyncio.create_task(ask(session, url, body, path=kind.path, key=key, answer=answer))] = answer
    return started


def facts(gateway: Gateway, answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Of each request: the fact that a leg of it was lost or moved, and that the next one was opened."""
    requests = {one.request_id for one in answers}

    def settled() -> bool:
        told = gateway.journal()
        return requests <= {fact.get("request_id") for fact in told if fact["kind"] == "request.settled"}

    until(settled, WRITTEN_S_MAX)
    found: dict[str, dict[str, Any]] = {request: {} for request in requests}
    for fact in gateway.journal():
        of = found.get(str(fact.get("request_id")))
        if of is None:
            continue
        if fact["kind"] == "leg.ended" and (fact["lost"] or fact["cause"] == "moved"):
            of.setdefault("lost", fact)
        elif fact["kind"] == "leg.opened" and "lost" in of:
            of.setdefault("opened", fact)
    return found


def move(kind: Kind, want: Answer, got: Answer, seen: dict[str, Any], since: float) -> dict[str, Any]:
    """One stream: whether it is as it should be, and where it went on elsewhere, how. Times in seconds after `since`.

    seen: of `facts`. gap_s: at the client. engine_s: from the standby's being asked to the client's next token.
    asked_tokens: what the standby had to know before it could go on; tail_tokens: of these, such as no page brings.
    """
    row: dict[str, Any] = {"kind": kind.name, "equal": got.content == want.content, "moved": False}
    lost, opened = seen.get("lost"), seen.get("opened")
    if not (lost and opened and got.usage):
        return row
    asked_tokens = got.usage["prompt_tokens"] + opened["tokens"]
    row |= {"asked_tokens": asked_tokens, "tail_tokens": tail(asked_tokens)}
    before = max((at for at, tokens in got.at if tokens <= opened["tokens"]), default=None)
    first = min((at for at, tokens in got.at if tokens > opened["tokens"]), default=None)
    if before is None or first is None:  # it was lost before its first token, or with its last one
        return row
    return row | {
        "moved": True,
        "tokens": opened["tokens"],
        "gap_s": first - before,
        "engine_s": first - opened["at"],
        "lost_s": lost["at"] - since,
        "asked_s": opened["at"] - since,
        "first_s": first - since,
        "at_s": [round(at - since, 4) for at, _ in got.at if before - AROUND_S <= at <= first + AROUND_S],
    }


def computed_again(rows: Sequence[dict[str, Any]], brought_tokens: int) -> tuple[float, float]:
    """Shares of what standbys were asked to go on from that they computed: in all, and beyond the partial tails."""
    asked_tokens = sum(row.get("asked_tokens", 0) for row in rows)
    tails = sum(row.get("tail_tokens", 0) for row in rows)
    again = asked_tokens - brought_tokens
    return again / max(1, asked_tokens), (again - tails) / max(1, asked_tokens)


def cost(answer: Answer) -> int:
    """What an answer must have been charged, in tokens."""
    return answer.usage["prompt_tokens"] + answer.tokens if answer.usage else 0


def milliseconds(values: Sequence[float], share: float) -> str:
    """That quantile, for people."""
    return f"{quantile(list(values), share) * 1e3:.0f} ms" if values else "–"
