"""A generator that set the limit says so."""

import pytest

from loadtests.traffic.record import Arrival, Record, Strain
from loadtests.traffic.strain import found
from tests.loadtests.traffic.runs import BEGAN_S, whole


def asked(lag_s: float = 0.0, count: int = 200, turns: int = 1, at_once: int = 1) -> list[Record]:
    """What so many clients asked: the first of their turns when they were due, or later."""
    return [
        whole(n + turn + lag_s, due_s=None if turn else BEGAN_S + n, session=f"{lag_s}-{n}")
        for n in range(count) for turn in range(turns) for _ in range(at_once)
    ]  # fmt: skip


def came(records: list[Record], shut_out: int = 0) -> list[Arrival]:
    """The arrivals of these, and of some that were not let in."""
    due = {one.session: one for one in records if one.due_s is not None}
    found = [Arrival(due_s=one.due_s or 0.0, begun_s=one.sent_s) for one in due.values()]
    return found + [Arrival(due_s=1.0, begun_s=1.0, begun=False)] * shut_out


def strains(cpu: float = 0.3, late_s: float = 0.002, worse: int = 0, count: int = 20) -> list[Strain]:
    """So many seconds, of which so many are worse than can be told from a busy neighbour."""
    return [
        Strain(at_s=float(n), process=n % 2, open=1, cpu=one, late_max_s=late)
        for n, (one, late) in enumerate([(cpu, late_s)] * worse + [(0.3, 0.002)] * (count - worse))
    ]


def test_one_that_kept_up_is_not_blamed():
    """Nor for one bad second in twenty."""
    one = found(came(asked(lag_s=0.003)), asked(lag_s=0.003), strains(cpu=0.99, late_s=0.5, worse=1))

    assert one.limited == []
    assert (one.processes, one.not_begun) == (2, 0)
    assert one.lag_p99_s == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("asked", "shut_out", "strained", "words"),
    [
        (asked(lag_s=0.2), 0, strains(), "came late: 200 of 200 by more than 50 ms, by 200 at most"),
        (asked(), 1, strains(), "1 clients were not let in"),
        (asked(), 0, strains(cpu=0.97, worse=5), "had no more of a core"),
        (asked(), 0, strains(late_s=0.4, worse=5), "woke up late: by 400 ms"),
    ],
)
def test_each_of_its_limits_is_told(asked, shut_out, strained, words):
    """Lag, room, CPU, and late times of tokens."""
    (said,) = found(came(asked, shut_out), asked, strained).limited
    assert words in said


def test_requests_that_were_due_at_no_time_hide_none_that_were_late():
    """Of a thousand clients of six turns 25 came late; turns after the first are sent when the one before is over."""
    records = asked(count=975, turns=6) + asked(lag_s=5.0, count=25, turns=6)

    one = found(came(records), records, strains())

    assert one.lag_p99_s == 5.0
    assert "25 of 1000 by more than 50 ms, by 5000 at most" in one.limited[0]


def test_one_of_a_few_clients_may_be_late():
    """On a machine that was busy for a moment, whatever it asks at once; two of them may not."""
    one, two = (asked(lag_s=0.06, count=late, at_once=16) + asked(count=14) for late in (1, 2))

    assert found(came(one), one, []).limited == []
    assert found(came(two), two, []).limited


def test_nothing_known_is_nothing_told():
    """A run that was over before its first second; a closed loop, in which nothing is due."""
    assert found([], [], []).limited == []
    assert (found([], [whole(1.0, due_s=None)], []).lag_p50_s, found([], [], []).lag_p99_s) == (None, None)
