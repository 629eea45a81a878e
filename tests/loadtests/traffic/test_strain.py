"""A generator that set the limit says so."""

import pytest

from loadtests.traffic.record import Arrival, Strain
from loadtests.traffic.strain import found


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
        (arrivals(lag_s=0.2), strains(), "sent late: by 200 ms"),
        (arrivals(begun=False), strains(), "1 clients were not let in"),
        (arrivals(), strains(cpu=0.97, worse=5), "had no more of a core"),
        (arrivals(), strains(late_s=0.4, worse=5), "woke up late: by 400 ms"),
    ],
)
def test_each_of_its_limits_is_told(came, strained, words):
    """Lag, room, CPU, and late times of tokens."""
    (said,) = found(came, [], strained).limited
    assert words in said


def test_nothing_known_is_nothing_told():
    """A run that was over before its first second."""
    assert found([], [], []).limited == []
