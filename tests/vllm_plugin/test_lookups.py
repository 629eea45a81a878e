"""Look-ups: a store that takes its time, and who waits for it."""

import threading
import time

import pytest

from vllm_plugin.lookups import ANSWER_S_MAX, FRESH_S, OPEN_MAX, Lookups

WAIT_S_MAX = 10.0


class Store:
    """Answers when it may. asked: what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []
        self.has = 2
        self.may = threading.Event()
        self.may.set()

    def held(self, keys):
        self.asked.append(list(keys))
        assert self.may.wait(WAIT_S_MAX)
        return min(self.has, len(keys))


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lookups(store, clock):
    lookups = Lookups(store.held, clock)
    yield lookups
    store.may.set()
    lookups.close()


def told(lookups, name, keys):
    """Its answer, once it is there."""
    deadline_s = time.monotonic() + WAIT_S_MAX
    while (answer := lookups.held(name, keys)) is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    return answer


def test_an_answer_stands_until_it_is_old_or_others_are_asked_for(lookups, store, clock):
    """A request is asked for in every pass of the scheduler, and the store is not."""
    assert told(lookups, "r", [b"a", b"b", b"c"]) == 2
    store.has = 3
    assert [lookups.held("r", [b"a", b"b", b"c"]) for _ in range(5)] == [2] * 5
    assert told(lookups, "r", [b"b", b"c"]) == 2
    assert len(store.asked) == 2
    clock.now_s += FRESH_S + 1
    assert told(lookups, "r", [b"b", b"c"]) == 2
    lookups.drop("r")
    assert told(lookups, "r", [b"a", b"b", b"c"]) == 3
    assert len(store.asked) == 4


def test_who_asks_a_silent_store_is_told_to_ask_again_and_then_that_there_is_nothing(lookups, store, clock):
    """And nobody asks for those any more that asked meanwhile."""
    store.may.clear()
    assert lookups.held("r", [b"a"]) is None
    assert lookups.held("s", [b"b"]) is None
    clock.now_s += ANSWER_S_MAX + 0.01
    assert lookups.held("r", [b"a"]) == 0
    assert lookups.held("s", [b"b"]) == 0
    store.may.set()

    assert told(lookups, "t", [b"c"]) == 1
    assert [b"b"] not in store.asked


def test_a_request_that_is_gone_is_not_asked_for(lookups, store):
    """Of those that wait behind a slow answer."""
    store.may.clear()
    assert lookups.held("r", [b"a"]) is None
    assert lookups.held("s", [b"b"]) is None
    lookups.drop("s")
    store.may.set()

    assert told(lookups, "t", [b"c"]) == 1
    assert [b"b"] not in store.asked


def test_there_are_never_too_many_questions(lookups, store):
    """What is more is computed."""
    store.may.clear()
    answers = [lookups.held(f"r{number}", [b"a"]) for number in range(OPEN_MAX + 10)]

    assert answers.count(0) >= 9
    assert answers.count(None) <= OPEN_MAX + 1


def test_after_the_end_there_is_nothing(lookups):
    lookups.close()

    assert lookups.held("r", [b"a"]) == 0


def test_a_store_that_breaks_its_word_has_nothing_and_is_asked_again(store, lookups, monkeypatch):
    """Such as a server that answers what no Redis would; else every request would wait for ever after."""
    wrong = [TypeError("'int' object is not iterable")]
    monkeypatch.setattr(lookups, "_held", lambda keys: _raised(wrong) if wrong else store.held(keys))

    assert told(lookups, "a", [b"1", b"2"]) == 0
    assert told(lookups, "b", [b"1", b"2"]) == 2


def _raised(wrong):
    raise wrong.pop()
