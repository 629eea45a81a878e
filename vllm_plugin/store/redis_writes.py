"""What the writer's thread does to the servers: pages put, repaired, evicted, quarantined, erased and swept."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from vllm_plugin.store.contract import Erased, Page, Quarantine
from vllm_plugin.store.entries import session_key
from vllm_plugin.store.redis_copies import Copies, Found, Wrong
from vllm_plugin.store.redis_entries import Head, Seals, cut
from vllm_plugin.store.redis_server import BATCH, FENCED, ODD, PREFIX, UNFENCED, Ready, Server, Unreachable
from vllm_plugin.store.redis_versions import Versions
from vllm_plugin.store.seen import Seen

STEP_BYTES, STEP_PAGES = 16 * 2**20, 64
ROOM_TRIES = 16
FORGET_STEPS = 64
MEMORY_SHARE = 8  # of the size goes where the server's memory is full: what is freed is not in one piece
SESSIONS_MAX = 65_536



class Writes:
    """Jobs. A server that does not answer is left out of them, where it is not said that they raise."""

    def __init__(
        self, copies: Copies, seals: Seals, versions: Versions, seen: Seen, clock: Callable[[], float],
        size_bytes: int, retention_s: float,
    ) -> None:  # fmt: skip
        self._copies, self._seals, self._versions, self._seen, self._clock = copies, seals, versions, seen, clock
        self._size_bytes, self._retention_s = size_bytes, retention_s
        self.erasures = 0

    def put(self, pages: list[Page]) -> bool:
        """Write pages to all their servers that answer; whether each is on one at least."""
        return all([self._put_step(step) for step in self._steps(pages)])

    def moved(self, session: str, generation: int) -> None:
        """A session came to this generation: all servers that answer know it then."""
        self._on_all(lambda server: server.moved(session, generation))

    def note(self, keys: Iterable[bytes], session: str, generation: int) -> None:
        """A session uses pages."""
        noted: defaultdict[Server, list[tuple[bytes, int]]] = defaultdict(list)
        for number, key in enumerate(keys):
            for server in self._copies.of(key):
                noted[server].append((key, 16 * number))
        for server, some in noted.items():
            with self._leaving_out():
                server.note(some, session, generation, self._clock(), self._retention_s)

    def mend(self, found: dict[bytes, Found], wrong: list[Wrong], erasures: int) -> None:
        """Remove what is wrong, and write the intact copy where there is one; not after an erasure since then."""
        for server, key, raw in wrong:
            with self._leaving_out():
                if raw is not None:
                    self._seen.count("damaged", len(server.remove([(key, raw)])))
                copy = found.get(key)
                if copy and copy.pieces and erasures == self.erasures and self._versions.may_be(key, copy.head.stamp):
                    self._written(server, [Ready(key, copy.head, copy.pieces, copy.head.manifest.session, UNFENCED)])

    def quarantine(self, key: bytes, digest: bytes) -> Quarantine:
        """Remove one version of a page from all its servers; PENDING where one of them does not answer."""
        removed, pending = False, False
        for server in self._copies.of(key):
            try:
                (raw,) = server.heads([key])
                head = self._seals.read(key, raw) if raw else None
                if head and head.manifest.digest == digest:
                    self._versions.over(key, head.stamp)
                    removed |= bool(server.remove([(key, head.raw)]))
            except (Unreachable, *ODD):
                pending = True
        self._seen.count("quarantined", removed)
        if pending:
            return Quarantine.PENDING
        self._versions.removed(key, digest)
        return Quarantine.REMOVED if removed else Quarantine.GONE

    def erase(self, session: str) -> Erased:
        """Remove what a session used. Raises Unreachable, after it was done on all servers that answer."""
        self.erasures += 1
        name = session_key(session)
        used: set[bytes] = set()
        unasked = self._on_all(lambda server: used.update(server.one("ZRANGE", PREFIX + b"s:" + name, 0, -1)))
        for key in used:
            self._versions.over(key, time.time_ns())
        gone: dict[bytes, int] = {}

        def erase_at(server: Server) -> None:
            gone.update(server.remove((key, b"") for key in used))
            server.one("ZREM", PREFIX + b"sessions", name)
            server.one("DEL", PREFIX + b"s:" + name)

        unreachable = self._on_all(erase_at) or unasked
        if unreachable:
            raise unreachable
        return Erased(len(gone), sum(gone.values()))

    def erase_all(self) -> Erased:
        """Remove everything that is ours. Raises Unreachable, after it was done on all servers that answer."""
        self.erasures += 1
        gone: dict[bytes, int] = {}

        def erase_at(server: Server) -> None:
            for keys in server.all_keys():
                for key in keys:
                    self._versions.over(key, time.time_ns())
                gone.update(server.remove((key, b"") for key in keys))
            server.forget_all()

        unreachable = self._on_all(erase_at)
        if unreachable:
            raise unreachable
        return Erased(len(gone), sum(gone.values()))

    def sweep(self, keep: bytes) -> Erased:
        """Remove what is old and nobody's; see `PageStore.sweep`."""
        gone: dict[bytes, int] = {}
        now_s = self._clock()
        cutoff_s = now_s - self._retention_s

        def sweep_at(server: Server) -> None:
            server.one("ZADD", PREFIX + b"keeps", now_s, keep)
            server.one("ZREMRANGEBYSCORE", PREFIX + b"keeps", "-inf", f"({cutoff_s}")
            kept = tuple(server.one("ZRANGE", PREFIX + b"keeps", 0, -1))
            for keys in server.all_keys():
                strangers = [key for key in keys if not key.startswith(kept)]
                for key, raw in zip(strangers, _heads(server, strangers), strict=True):
                    head = self._seals.read(key, raw) if raw else None
                    if raw is not None and (head is None or head.manifest.written_s < cutoff_s):
                        gone.update(server.remove([(key, raw)]))

        self._on_all(sweep_at)
        self._seen.count("swept", len(gone))
        return Erased(len(gone), sum(gone.values())) + self.forget()

    def forget(self) -> Erased:
        """Remove what nobody used for the retention; most of it has expired by itself."""
        gone: dict[bytes, int] = {}
        cutoff_s = self._clock() - self._retention_s

        def forget_at(server: Server) -> None:
            for _ in range(FORGET_STEPS):
                keys = server.coldest(BATCH, cutoff_s)
                if not keys:
                    break
                gone.update(server.remove((key, b"") for key in keys))
            server.one("ZREMRANGEBYSCORE", PREFIX + b"sessions", "-inf", f"({cutoff_s!r}")
            for session in server.one("ZRANGE", PREFIX + b"sessions", 0, -SESSIONS_MAX - 1):
                server.one("ZREM", PREFIX + b"sessions", session)
                server.one("DEL", PREFIX + b"s:" + session)

        self._on_all(forget_at)
        self._seen.count("evicted", len(gone))
        return Erased(len(gone), sum(gone.values()))

    # One step of a put.

    def _put_step(self, pages: list[Page]) -> bool:
        there, reached = self._there(pages)
        todo: defaultdict[Server, list[Ready]] = defaultdict(list)
        notes: defaultdict[tuple[Server, str, int], list[tuple[bytes, int]]] = defaultdict(list)
        for page in pages:
            key, manifest = page.key, page.manifest
            heads = there.get(key, {})
            head = max(heads.values(), key=lambda head: head.stamp, default=None)
            if head is None:
                stamp = self._versions.next(key, time.time_ns())
                head = self._seals.made(key, manifest, page.payload, stamp)
            elif not self._seals.fits(key, head, [page.payload]):
                head = None  # another version is there: it is kept, and completed by whoever reads it
            for server in self._copies.of(key):
                if server in heads:
                    notes[server, manifest.session, manifest.generation].append((key, manifest.position))
                elif head and server in reached:
                    pieces = list(cut(page.payload))
                    todo[server].append(Ready(key, head, pieces, manifest.session, manifest.generation))
        own = {page.manifest.session for page in pages}
        new: set[bytes] = set()
        fenced: set[bytes] = set()
        for server, ready in todo.items():
            new |= self._made_room(server, ready, own, fenced)
        for (server, session, generation), noted in notes.items():
            with self._leaving_out():
                if not server.note(noted, session, generation, self._clock(), self._retention_s):
                    fenced.update(key for key, _ in noted)
        known = {page.key for page in pages} & set(there) - fenced
        put = new - known - fenced
        self._seen.count("put", len(put))
        self._seen.count("known", len(known))
        self._seen.count("fenced", len(fenced))
        self._seen.count("shed", len(pages) - len(put | known | fenced))
        return len(put | known) == len(pages)

    def _there(self, pages: list[Page]) -> tuple[dict[bytes, dict[Server, Head]], set[Server]]:
        """Which servers have which pages already, and which answer. What is damaged is removed."""
        asked: defaultdict[Server, list[bytes]] = defaultdict(list)
        for page in pages:
            for server in self._copies.of(page.key):
                asked[server].append(page.key)
        there: defaultdict[bytes, dict[Server, Head]] = defaultdict(dict)
        reached: set[Server] = set()
        for server, keys in asked.items():
            with self._leaving_out():
                for key, raw in zip(keys, server.heads(keys), strict=True):
                    head = self._copies.judged(key, raw)
                    if head:
                        there[key][server] = head
                    elif raw is not None:
                        self._seen.count("damaged", len(server.remove([(key, raw)])))
                reached.add(server)
        return dict(there), reached

    def _made_room(self, server: Server, ready: list[Ready], own: set[str], fenced: set[bytes]) -> set[bytes]:
        """Write pages to a server, once more after evicting where it says that its memory is full; which are there.

        fenced: gets those whose sessions had moved.
        """
        need_bytes = sum(one.head.manifest.page_bytes for one in ready)
        done: set[bytes] = set()
        with self._leaving_out():
            if self._room(server, need_bytes, own):
                done = self._written(server, ready, fenced)
                left = [one for one in ready if one.key not in done | fenced]
                if left and self._evict(server, max(need_bytes, self._size_bytes // MEMORY_SHARE), own):
                    done |= self._written(server, left, fenced)
        return done

    def _written(self, server: Server, ready: list[Ready], fenced: set[bytes] | None = None) -> set[bytes]:
        done: set[bytes] = set()
        for one, answer in zip(ready, server.put(ready, self._clock(), self._retention_s), strict=True):
            if isinstance(answer, Exception):
                self._seen.failed(answer)
            elif answer == FENCED and fenced is not None:
                fenced.add(one.key)
            elif answer >= 0:
                done.add(one.key)
                self._versions.saw(one.key, one.head.stamp if answer == 1 else 0)
        return done

    def _room(self, server: Server, need_bytes: int, own: set[str]) -> bool:
        """Whether there is room for so much, made where there was none."""
        for _ in range(ROOM_TRIES):
            over_bytes = int(server.one("GET", PREFIX + b"bytes") or 0) + need_bytes - self._size_bytes
            if over_bytes <= 0:
                return True
            if need_bytes > self._size_bytes or not self._evict(server, over_bytes, own):
                return False
        return False

    def _evict(self, server: Server, need_bytes: int, own: set[str]) -> bool:
        """Remove what was used longest ago, but nothing of the sessions that want the room; whether anything went."""
        victims: dict[bytes, int] = {}
        names = {session_key(session) for session in own}
        for name, used_s in server.coldest_sessions(BATCH):
            if name not in names:
                victims |= server.last_pages(name, used_s, need_bytes - sum(victims.values()))
            if sum(victims.values()) >= need_bytes:
                break
        if not victims:  # of sessions that are not listed any more
            keys = server.coldest(BATCH)
            for key, raw in zip(keys, _heads(server, keys), strict=True):
                head = self._seals.read(key, raw) if raw else None
                if head is None or head.manifest.session not in own:
                    victims[key] = head.manifest.page_bytes if head else 0
        self._seen.count("evicted", len(server.remove((key, b"") for key in victims)))
        return bool(victims)

    def _steps(self, pages: list[Page]) -> Iterator[list[Page]]:
        """As many as are written at once; a key is once in each."""
        bytes_max = min(STEP_BYTES, self._size_bytes // 8)
        step: dict[bytes, Page] = {}
        size = 0
        for page in pages:
            if step and (size + page.manifest.page_bytes > bytes_max or len(step) == STEP_PAGES or page.key in step):
                yield list(step.values())
                step, size = {}, 0
            step[page.key] = page
            size += page.manifest.page_bytes
        if step:
            yield list(step.values())

    # Servers that do not answer.

    @contextmanager
    def _leaving_out(self) -> Iterator[None]:
        """One that does not answer, which was counted; one that says no, which is."""
        try:
            yield
        except Unreachable:
            pass
        except ODD as error:
            self._seen.failed(error)

    def _on_all(self, job: Callable[[Server], None]) -> Unreachable | None:
        """Do it on every server; why one did not answer, if so."""
        missing: Unreachable | None = None
        for server in self._copies.servers:
            try:
                job(server)
            except Unreachable as error:
                missing = error
            except ODD as error:
                self._seen.failed(error)
                missing = Unreachable(f"{server.name}: {error}")
        return missing


def _heads(server: Server, keys: list[bytes]) -> list[bytes | None]:
    return server.heads(keys) if keys else []
