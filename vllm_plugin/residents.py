"""Residents: the pages that were ordered to be sealed, as the scheduler knows them. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from vllm_plugin.page import Page


class Resident(NamedTuple):
    """parent: the chain of the page before it, b"" for the first one. step: in which it was filled."""

    page: Page
    parent: bytes
    step: int


class Residents:
    """By block. A block that is given out anew is of another generation, and its page is no more.

    Of a page that is no more it is remembered which page it continued, while there are any that continue it: those were
    computed from both.
    """

    def __init__(self) -> None:
        self._of: dict[int, Resident] = {}
        self._blocks: defaultdict[bytes, set[int]] = defaultdict(set)  # by chain
        self._above: dict[bytes, bytes] = {}  # of a chain that is here, or that one which is here continues: its parent
        self._below: defaultdict[bytes, set[bytes]] = defaultdict(set)  # the reverse
        self._generation: defaultdict[int, int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._of)

    def page(self, block: int, group: int, chain: bytes, position: int) -> Page:
        """That page in that block, as the block is now."""
        return Page(block, self._generation[block], group, chain, position)

    def is_current(self, page: Page) -> bool:
        """Whether its block was not given out anew since."""
        return self._generation[page.block] == page.generation

    def holds(self, page: Page) -> bool:
        """Whether this very page was ordered to be sealed, and not forgotten since."""
        resident = self._of.get(page.block)
        return resident is not None and resident.page == page

    def blocks(self) -> set[int]:
        """All that hold one."""
        return set(self._of)

    def chain(self, block: int) -> bytes:
        """Of the page in that block; b"" where none is full."""
        resident = self._of.get(block)
        return resident.page.chain if resident is not None else b""

    def filled_in(self, block: int) -> int:
        """The step that filled it, -1 where it is not full."""
        resident = self._of.get(block)
        return resident.step if resident is not None else -1

    def given_out(self, blocks: Iterable[int]) -> None:
        """To somebody who writes to them."""
        for block in blocks:
            self._generation[block] += 1
            self.forget(block)

    def filled(self, page: Page, parent: bytes, step: int) -> None:
        """It is full after this step, and is sealed then."""
        self.forget(page.block)
        self._of[page.block] = Resident(page, parent, step)
        self._blocks[page.chain].add(page.block)
        self._above[page.chain] = parent
        self._below[parent].add(page.chain)

    def forget(self, block: int) -> None:
        """Its page is no more."""
        resident = self._of.pop(block, None)
        if resident is None:
            return
        chain = resident.page.chain
        _take_out(self._blocks, chain, block)
        while chain in self._above and chain not in self._blocks and chain not in self._below:
            parent = self._above.pop(chain)
            _take_out(self._below, parent, chain)
            chain = parent

    def descended(self, chain: bytes, after_step: int) -> set[int]:
        """The blocks whose tokens continue that chain, filled later than that step.

        They may have been computed from the page that has this chain. Some were not, where that chain is twice in the
        cache: better too many than one too few.
        """
        found: set[int] = set()
        chains = [chain]
        while chains:
            for below in self._below.get(chains.pop(), ()):
                found |= {block for block in self._blocks.get(below, ()) if self._of[block].step > after_step}
                chains.append(below)
        return found

    def clear(self) -> None:
        """All pages are no more; generations go on."""
        self._of.clear()
        self._blocks.clear()
        self._above.clear()
        self._below.clear()


def _take_out(sets: defaultdict[bytes, set[Any]], name: bytes, one: Any) -> None:
    sets[name].discard(one)
    if not sets[name]:
        del sets[name]
