"""Several threads at one piece of work."""

import threading
import time

import pytest

from vllm_plugin import crew


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch):
    """However many there are."""
    monkeypatch.setattr(crew, "_cores", lambda: {0, 1})
    monkeypatch.setattr(crew.os, "sched_setaffinity", lambda *_: None)


def test_each_has_its_place_and_two_are_at_work_at_once():
    met = threading.Barrier(2, timeout=5)

    def work(number):
        met.wait()
        return number * number

    assert crew.Crew().each(work, range(6)) == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("ours", [True, False])
def test_what_one_raises_is_raised_when_those_begun_are_over(ours):
    """Whoever it is, the one who asked or another one; and nothing more is begun, since nobody would look at it."""
    over, begun = [], threading.Barrier(2, timeout=5)

    def work(number):
        if number < 2:
            begun.wait()
        if (threading.current_thread() is threading.main_thread()) == ours:
            raise ZeroDivisionError
        time.sleep(0.05)
        over.append(number)

    with pytest.raises(ZeroDivisionError):
        crew.Crew().each(work, range(20))
    assert len(over) == 1


def others() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith("holdfast-crew")]


def test_the_others_stay_and_end_with_the_crew():
    """To begin threads takes as long as what they do."""
    before, met, several = set(others()), threading.Barrier(2, timeout=5), crew.Crew()
    several.each(lambda _: met.wait(), range(2))
    (first,) = set(others()) - before
    several.each(lambda _: met.wait(), range(2))
    assert set(others()) - before == {first}

    del several
    first.join(5)
    assert not first.is_alive()


def test_threads_that_may_not_be_spread_work_where_they_are(monkeypatch):
    """A crew is kept: else one refusal would be the end of it."""

    def refused(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(crew.os, "sched_setaffinity", refused)
    met, several = threading.Barrier(2, timeout=5), crew.Crew()

    for _ in range(2):
        assert len(several.each(lambda _: met.wait(), range(2))) == 2


def test_one_is_done_by_who_asks():
    """As is everything where one thread is allowed."""
    assert crew.Crew().each(lambda _: threading.current_thread(), [1]) == [threading.current_thread()]
    assert crew.Crew(1).each(lambda _: threading.current_thread(), [1, 2]) == [threading.current_thread()] * 2


def test_the_cores_are_those_of_the_whole_process(monkeypatch):
    """A thread that is bound to one core has crews on all that its process was given."""
    monkeypatch.undo()
    before, found = crew._cores(), []

    def bound():
        crew.os.sched_setaffinity(0, {min(before)})
        found.append(crew._cores())

    thread = threading.Thread(target=bound)
    thread.start()
    thread.join()

    assert found == [before]
