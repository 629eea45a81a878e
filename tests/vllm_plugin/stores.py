"""A page store in this process, with the contract of a real one, and what can go wrong with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vllm_plugin.store.contract import Erased, Manifest, Page, Quarantine, Writing

__all__ = ["DictStore", "Manifest", "Page"]


class DictStore:
    """pages: by key; whoever likes may change them. quarantined: what was put aside. used: who said so. moved: to which
    generation sessions came. taken: how many pages were new.
    """

    def __init__(self) -> None:
        self.pages: dict[bytes, Page] = {}
        self.quarantined: list[bytes] = []
        self.used: list[tuple[bytes, str]] = []
        self.moved: dict[str, int] = {}
        self.taken = 0
        self.swept: list[tuple[bytes, float]] = []

    def put_soon(self, pages: Sequence[Page]) -> bool:
        self.taken += sum(page.key not in self.pages for page in pages)
        self.pages |= {page.key: page for page in pages if page.key not in self.pages}
        return True

    def used_soon(self, keys: Sequence[bytes], session: str, generation: int = 0) -> bool:
        self.used += [(key, session) for key in keys]
        return True

    def moved_soon(self, session: str, generation: int) -> bool:
        self.moved[session] = max(generation, self.moved.get(session, 0))
        return True

    def writing(self) -> Writing:
        return Writing(put=self.taken)

    def held(self, keys: Sequence[bytes]) -> int:
        return next((n for n, key in enumerate(keys) if key not in self.pages), len(keys))

    @contextmanager
    def read(self, keys: Sequence[bytes]) -> Iterator[list[Page | None]]:
        yield [self.pages.get(key) for key in keys]

    def sweep(self, keep: bytes, within_s: float) -> Erased:
        self.swept.append((keep, within_s))
        return Erased()

    def close(self) -> None:
        pass

    def quarantine(self, key: bytes, digest: bytes, within_s: float = 0.25) -> Quarantine:
        if key not in self.pages or self.pages[key].manifest.digest != digest:
            return Quarantine.GONE
        del self.pages[key]
        self.quarantined.append(key)
        return Quarantine.REMOVED
