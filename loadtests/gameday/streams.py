"""Streams: clients of a gateway or server, on a thread of their own, so that whoever makes the fault may block."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, Self

import aiohttp

from loadtests.answers import Answer, ask

ANSWER_S_MAX = 120.0  # a whole stream, pauses and all
CLOSE_S_MAX = 5.0


class Streams:
    """Requests that were begun together. answers: of each, growing while it streams, in the order of their bodies."""

    def __init__(self, answers: Sequence[Answer], running: Sequence["Future[Answer]"]) -> None:
        self.answers = list(answers)
        self._running = running

    @property
    def tokens(self) -> int:
        """How many have come, of all together."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def done(self) -> bool:
        """Whether all have ended, one way or the other."""
        return all(one.done() for one in self._running)

    def wait(self, seconds: float = ANSWER_S_MAX) -> list[Answer]:
        """The answers once all have ended; a stream that has not by then is broken off, its error says so.

        A connection that broke is an error with the code `connection`.
        """
        _, late = wait(self._running, seconds)
        for one in late:
            one.cancel()
        for answer, one in zip(self.answers, self._running, strict=True):
            if one in late:
                answer.error = {"code": "no_end", "message": f"not ended after {seconds:g} s"}
        return self.answers


class Clients:
    """Whoever asks, in a thread with an event loop. Ends with `close`, and every open stream with it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gameday-clients", daemon=True)
        self._thread.start()
        self._session = self._run(self._opened())

    def begin(
        self,
        url: str,
        bodies: Sequence[dict[str, Any]],
        key: str = "",
        *,
        path: str = "/v1/chat/completions",
        session_id: str = "",
        seconds: float = ANSWER_S_MAX,
    ) -> Streams:
        """Ask all of these at once, and come back at once. seconds: a request's time, from its beginning to its end."""
        answers = [Answer() for _ in bodies]
        limit = aiohttp.ClientTimeout(total=seconds)
        running = [
            self._begun(_asked(self._session, url, body, path, key, answer, session_id, limit))
            for body, answer in zip(bodies, answers, strict=True)
        ]
        return Streams(answers, running)

    def ask(self, url: str, bodies: Sequence[dict[str, Any]], key: str = "", **more: Any) -> list[Answer]:
        """The same, and wait for their ends."""
        seconds = more.get("seconds", ANSWER_S_MAX)
        return self.begin(url, bodies, key, **more).wait(seconds + CLOSE_S_MAX)

    def hang_up(self) -> None:
        """Break off what is open, so that whoever is asked need not bring it to its end."""
        self._run(_ended())

    def close(self) -> None:
        """The same, and end. May be called again."""
        if not self._loop.is_closed():
            self.hang_up()
            self._run(self._session.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CLOSE_S_MAX)
            self._loop.close()

    async def _opened(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    def _begun(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._begun(work).result(CLOSE_S_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


async def _ended() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _asked(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    path: str,
    key: str,
    answer: Answer,
    session_id: str,
    limit: aiohttp.ClientTimeout,
) -> Answer:
    try:
        return await ask(session, url, body, path=path, key=key, answer=answer, session_id=session_id, limit=limit)
    except TimeoutError:
        answer.error = {"code": "no_end", "message": f"not ended after {limit.total:g} s"}
    except (aiohttp.ClientError, OSError, ValueError) as broken:
        answer.error = {"code": "connection", "message": repr(broken)[:200]}
    return answer
