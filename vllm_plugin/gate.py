"""The gate: no page that was hit in the prefix cache is read before it was seen intact. Pure.

A request that hits pages is asked to wait, the worker looks at them after the forward pass of that very step, and its
verdict holds for the scheduler's next pass, once. Whoever was told to go but was not admitted (there was no room) is
verified again in that step, so that it can go in the next one, if there is room then: it does not have to wait twice.
"""

import random
from collections.abc import Callable, Sequence

from vllm_plugin.page import Page, Report

# That are looked at in one step; what is more waits for the next one, in its order. A request's pages are looked at
# together, however many: a verdict holds for one pass.
PAGES_PER_STEP_MAX = 1024


class Gate:
    """Who waits for which pages, and which pages may be read in this pass of the scheduler.

    verify: the share of pages that are looked at, 0 to 1; the others are believed, if they were ever sealed.
    """

    def __init__(self, verify: float, rng: random.Random) -> None:
        self._verify = verify
        self._rng = rng
        self._waiting: dict[str, tuple[Page, ...]] = {}
        self._asked = 0
        self._intact: frozenset[Page] = frozenset()
        self._model = b""

    def opens(self, request_id: str, pages: Sequence[Page]) -> bool:
        """Whether a request may be admitted now, reading these pages. May be asked any number of times."""
        may = not self._verify or self._intact.issuperset(pages)
        if may or self._asked < PAGES_PER_STEP_MAX:
            self._waiting[request_id] = tuple(pages)
            self._asked += 0 if may else len(pages)
        return may

    def admitted(self, request_id: str) -> tuple[Page, ...]:
        """It was, or is no more. Returns the pages that it asked for last."""
        return self._waiting.pop(request_id, ())

    def take(self, sealed: Callable[[Page], bool]) -> tuple[Page, ...]:
        """The end of a pass: the pages to be verified, of all who asked and were not admitted.

        All verdicts end here; whoever waits asks again in the next pass. sealed: whether a page may be believed without
        being looked at, when not all are looked at.
        """
        pages = dict.fromkeys(page for waiting in self._waiting.values() for page in waiting)
        self._waiting, self._asked = {}, 0
        self._intact = frozenset(
            page for page in pages if self._verify < 1 and self._rng.random() >= self._verify and sealed(page)
        )
        return tuple(page for page in pages if page not in self._intact) if self._verify else ()

    def hear(self, report: Report) -> None:
        """What was found. Verdicts of another model are none."""
        if report.void or self._model not in (b"", report.model):
            self._intact = frozenset()
        self._model = report.model
        found = frozenset() if report.void else report.intact
        self._intact = (self._intact | found) - {lost.page for lost in report.lost}

    def reset(self) -> None:
        """Nothing is known any more."""
        self._intact, self._waiting = frozenset(), {}
