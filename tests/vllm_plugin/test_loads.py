"""Loads: by turns, bounded in each step, and a slow store keeps nobody waiting but who loads from it."""

import threading
import time

import pytest

from vllm_plugin import loads as room
from vllm_plugin.exchange import Arrived, Fetched
from vllm_plugin.loads import ALONE_S_MAX, FETCHED_BYTES_MAX, LOAD_S_MAX, SLICE_BYTES, Loads
from vllm_plugin.page import Kind, Load, Page
from vllm_plugin.whose import Whose

WAIT_S_MAX = 10.0
PAGE_BYTES = SLICE_BYTES // 4  # four pages in a slice


class Exchange:
    """A store that may be slow, and blocks. bad: positions of pages that are not right; gone: that are not there."""

    def __init__(self) -> None:
        self.fetched: list[Page] = []
        self.placed: list[Page] = []
        self.aside: list[Page] = []
        self.open = 0
        self.uses: list[tuple[str, int]] = []
        self.bad: set[int] = set()
        self.gone: set[int] = set()
        self.may, self.may_put_aside = threading.Event(), threading.Event()
        self.may.set()
        self.may_put_aside.set()
        self.on_place = lambda: None

    def fetch(self, pages):
        assert self.may.wait(WAIT_S_MAX)
        self.fetched += pages
        said = [None if page.position in self.gone else b"d" for page in pages]
        self.open += 1
        return Fetched(pages, said, [b"p"] * len(pages), self._closed)

    def _closed(self):
        self.open -= 1

    def place(self, fetched):
        self.on_place()
        fetched.close()
        self.placed += fetched.pages
        kinds = [Kind.ABSENT if said is None else Kind.CHANGED if page.position in self.bad else None
                 for page, said in zip(fetched.pages, fetched.said, strict=True)]  # fmt: skip
        return [Arrived(page, b"d", kind) for page, kind in zip(fetched.pages, kinds, strict=True)]

    def put_aside(self, page, said):
        assert self.may_put_aside.wait(WAIT_S_MAX)
        self.aside.append(page)

    def used(self, pages, whose):
        if pages:
            self.uses.append((whose.session, len(pages)))


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def exchange():
    return Exchange()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def loads(exchange, clock):
    loads = Loads(exchange, PAGE_BYTES, clock)
    yield loads
    exchange.may.set()
    exchange.may_put_aside.set()
    loads.close()
    until(lambda: exchange.open == 0)  # whatever was fetched is placed, or nobody looks at it any more


def load(name: str, count: int, first: int = 0) -> Load:
    pages = [Page(first + n, 1, 0, b"%s %d" % (name.encode(), n), n) for n in range(count)]
    return Load(name, tuple(pages), b"", Whose(name))


def until(look):
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not look():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def ready(loads, count):
    """Wait until so many can be placed."""
    until(lambda: sum(len(fetched.pages) for _, fetched in list(loads._fetched)) == count)


def step(loads, **said):
    """What came in it."""
    came = list(loads.place(**({"computes": True, "step_s": 0.0} | said)))
    loads.over()
    return came


def steps(loads, names):
    """Until these wait no more."""
    came, over = [], set()

    def look():
        came.extend(step(loads))
        over.update(loads.brought())
        return over >= set(names)

    until(look)
    return came


def test_all_that_a_request_waits_for_comes_in_order(loads, exchange):
    """And its wait is over with the last of it, when the store is told who used it."""
    loads.add(load("r", 11))

    came = steps(loads, ["r"])

    assert [one.page.position for one in came] == list(range(11))
    assert loads.not_brought() == set()
    assert loads.missed() == 0
    assert exchange.uses == [("r", 11)]
    assert not loads


def test_many_come_by_turns(loads, exchange):
    """A short one does not wait for all of a long one, whoever came first."""
    exchange.may.clear()
    loads.add(load("long", 40))
    loads.add(load("short", 6, 100))
    exchange.may.set()

    came = [one.page.chain.split()[0] for one in steps(loads, ["long", "short"])]

    assert came.index(b"short") <= 4
    assert len(came) - came[::-1].index(b"short") <= 4 * 4 + 2


def test_a_step_that_computes_places_one_slice_and_what_its_share_allows(loads, exchange, clock):
    """Running streams wait for it. One that computes nothing goes on until its time is up."""
    loads.add(load("r", 64))
    exchange.on_place = lambda: setattr(clock, "now_s", clock.now_s + 0.01)

    for step_s, pages in (0.04, 4), (0.08, 8), (100.0, 8):
        ready(loads, FETCHED_BYTES_MAX // PAGE_BYTES)
        assert len(step(loads, step_s=step_s)) == pages
    ready(loads, FETCHED_BYTES_MAX // PAGE_BYTES)
    exchange.on_place = lambda: setattr(clock, "now_s", clock.now_s + ALONE_S_MAX / 3 + 1e-6)
    assert len(step(loads, computes=False)) == 4 * 3


def test_no_more_is_fetched_than_may_wait(loads, exchange):
    """However much is asked for."""
    loads.add(load("r", 1000))
    most = FETCHED_BYTES_MAX // PAGE_BYTES + 4
    until(lambda: len(exchange.fetched) >= most - 4)
    time.sleep(0.05)
    assert len(exchange.fetched) <= most


def test_a_store_that_does_not_answer_holds_up_no_step_and_its_request_is_computed_in_the_end(loads, exchange, clock):
    exchange.may.clear()
    loads.add(load("r", 8))
    assert step(loads) == []
    assert loads.brought() == set()

    clock.now_s += LOAD_S_MAX + 1
    step(loads)

    assert loads.brought() == {"r"}
    assert loads.not_brought() == set(range(8))
    assert loads.missed() == 8
    exchange.may.set()
    loads.add(load("s", 4, 100))
    assert {one.page.block for one in steps(loads, ["s"])} == {100, 101, 102, 103}


@pytest.mark.parametrize("what", ["bad", "gone"])
def test_behind_what_is_bad_nothing_is_brought(loads, exchange, what):
    """Its blocks are told, and what came before it is used."""
    getattr(exchange, what).add(5)
    loads.add(load("r", 24))

    came = steps(loads, ["r"])

    assert [one.kind for one in came] == [None] * 5 + [Kind.CHANGED if what == "bad" else Kind.ABSENT]
    assert loads.not_brought() == set(range(5, 24))
    assert loads.missed() == 19
    assert exchange.uses == [("r", 5)]
    assert [page.position for page in exchange.aside] == ([5] if what == "bad" else [])


def test_a_request_waits_until_what_is_bad_was_put_aside(loads, exchange):
    """It would be told to load it again. No step waits for that."""
    exchange.bad.add(0)
    exchange.may_put_aside.clear()
    loads.add(load("r", 2))
    until(lambda: step(loads))
    assert loads.brought() == set()

    exchange.may_put_aside.set()
    steps(loads, ["r"])
    assert len(exchange.aside) == 1


def test_who_is_gone_waits_for_nothing(loads, exchange):
    """Its blocks are given back at once, and what was fetched for it is not placed."""
    exchange.may.clear()
    loads.add(load("r", 8))
    loads.stop("r")
    loads.stop("unheard of")
    loads.over()
    assert loads.brought() == {"r"}
    assert loads.not_brought() == set(range(8))

    exchange.may.set()
    loads.add(load("s", 4, 100))
    steps(loads, ["s"])
    assert {page.block for page in exchange.placed} == {100, 101, 102, 103}


def test_of_another_model_nothing_was_brought(loads, exchange):
    """Not even what was in its place already."""
    loads.add(load("r", 24))
    ready(loads, FETCHED_BYTES_MAX // PAGE_BYTES)
    assert len(step(loads)) == 4

    loads.stop_all()
    loads.over()

    assert loads.brought() == {"r"}
    assert loads.not_brought() == set(range(24))
    assert exchange.uses == []


def test_pages_larger_than_a_slice_come_one_by_one(exchange, clock):
    """One at least is fetched, and one placed."""
    loads = Loads(exchange, 2 * room.FETCHED_BYTES_MAX, clock)
    loads.add(load("r", 3))

    assert len(steps(loads, ["r"])) == 3
    loads.close()


def test_a_store_that_breaks_its_word_has_nothing_and_is_asked_again(exchange, loads, monkeypatch):
    """Such as a server that answers what no Redis would: who waits for it computes, and who comes then loads."""
    fetch, wrong = exchange.fetch, [TypeError("'int' object is not iterable")]
    monkeypatch.setattr(exchange, "fetch", lambda pages: _raised(wrong) if wrong else fetch(pages))

    loads.add(load("a", 3))
    came = steps(loads, ["a"])
    assert came[0].kind is Kind.ABSENT
    assert loads.not_brought() == {0, 1, 2}

    loads.add(load("b", 3))
    assert [one.kind for one in steps(loads, ["b"])] == [None] * 3


def test_a_page_that_cannot_be_put_aside_keeps_nobody_waiting(exchange, loads, monkeypatch):
    """The next one that is bad is put aside again."""
    put_aside, wrong = exchange.put_aside, [AssertionError()]
    monkeypatch.setattr(exchange, "put_aside", lambda *bad: _raised(wrong) if wrong else put_aside(*bad))
    exchange.bad = {1}

    loads.add(load("a", 3))
    steps(loads, ["a"])
    loads.add(load("b", 3))
    steps(loads, ["b"])

    assert [page.position for page in exchange.aside] == [1]


def _raised(wrong):
    raise wrong.pop()
