"""A generator that set the limit says so."""

import pytest

from loadtests.traffic.record import Arrival, Strain
from loadtests.traffic.strain import found
from tests.loadtests.traffic.runs import whole


def arrivals(lag_s: float = 0.0, begun: bool = True, count: int = 200) -> list[Arrival]:
    return [Arrival(due_s=float(n), begun_s=n + lag_s, begun=begun or n > 0) for n in range(count)]


def strains(cpu: float = 0.3, late_s: float = 0.002, worse: int = 0, count: int = 20) -> list[Strain]:
    """So many seconds, of which so many are worse than can be told from a busy neighbour."""
    return [
        Strain(at_s=float(n), process=n % 2, open=1, cpu=one, late_max_s=late)
        for n, (one, late) in enumerate([(cpu, late_s)] * worse + [(0.3, 0.002)] * (count - worse))
    ]


def test_one_that_kept_up_is_not_blamed():
    """Nor for one bad second in twenty."""
    one = found(arrivals(lag_s=0.003), [], strains(cpu=0.99, late_s=0.5, worse=1))

    assert one.limited == []
    assert (one.processes, one.not_begun) == (2, 0)
    assert one.lag_p99_s == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("came", "strained", "words"),
    [
        (arrivals(lag_s=0.2), strains(), "sent late: 200 of 200 by more than 50 ms, by 200 at most"),
        (arrivals(begun=False), strains(), "1 clients were not let in"),
        (arrivals(), strains(cpu=0.97, worse=5), "had no more of a core"),
        (arrivals(), strains(late_s=0.4, worse=5), "woke up late: by 400 ms"),
    ],
)
def test_each_of_its_limits_is_told(came, strained, words):
    """Lag, room, CPU, and late times of tokens."""
    (said,) = found(came, [], strained).limited
    assert words in said


def test_requests_that_were_due_at_no_time_hide_none_that_were_late():
    """Of a thousand clients of six turns 25 came late; turns after the first are sent when the one before is over."""
    late, turns = arrivals(lag_s=5.0, count=25), [whole(1.0, due_s=None) for _ in range(6000)]

    one = found(arrivals(count=975) + late, turns, strains())

    assert one.lag_p99_s == 5.0
    assert "25 of 1000 by more than 50 ms, by 5000 at most" in one.limited[0]


def test_one_of_a_few_requests_may_be_late():
    """By a hair, on a machine that was busy for a moment; two of them may not."""
    assert found(arrivals(lag_s=0.06, count=1) + arrivals(count=14), [], []).limited == []
    assert found(arrivals(lag_s=0.06, count=2) + arrivals(count=14), [], []).limited


def test_nothing_known_is_nothing_told():
    """A run that was over before its first second; a closed loop, in which nothing is due."""
    assert found([], [], []).limited == []
    assert (found([], [whole(1.0, due_s=None)], []).lag_p50_s, found([], [], []).lag_p99_s) == (None, None)
