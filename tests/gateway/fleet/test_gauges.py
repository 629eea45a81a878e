"""What a replica says of itself, read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.course import GAPS_LEAST, ROUNDS, Course
from gateway.fleet.gauges import Gauges, read
from guards.peers import Vitals

PAGE = """# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="a }} b"}} 3.0
vllm:num_requests_waiting_by_reason{{engine="0",reason="capacity"}} 900.0
vllm:{cache}_cache_usage_perc{{engine="0",model_name="a }} b"}} 0.25
vllm:num_preemptions_total{{engine="0",model_name="a }} b"}} 1e+02
vllm:num_preemptions_created{{engine="0"}} 1.7e+09
vllm:prompt_tokens_total{{engine="0"}} 55.0
"""


@pytest.mark.parametrize("cache", ["kv", "gpu"])
def test_the_lines_that_matter_are_read_by_both_of_vllms_names(cache):
    """Comments, other metrics whose names begin alike, and braces inside of labels do not confuse it."""
    assert read(PAGE.format(cache=cache).encode(), 7.0) == Gauges(3.0, 0.25, 100.0, 7.0)


def test_engines_are_added_up_but_for_the_fullest_cache():
    """With data parallelism each engine has lines of its own."""
    second = PAGE.format(cache="kv").replace('engine="0"', 'engine="1"').replace("0.25", "0.75")

    assert read((PAGE.format(cache="kv") + second).encode(), 7.0) == Gauges(6.0, 0.75, 200.0, 7.0)


@pytest.mark.parametrize("page", [b"", b"vllm:num_requests_swapped 1\n", b"vllm:num_requests_waiting 1.2.3\n", b"\xff"])
def test_a_page_without_them_is_none(page):
    """Metrics may be switched off, or be somebody else's."""
    assert read(page, 7.0) is None


@pytest.mark.parametrize("value", ["1e999", "-1e999", "-1"])
def test_a_number_that_none_of_them_can_be_is_not_read(value):
    """Counts and shares are 0 or more, and end: what is made of them would break."""
    assert read(f"vllm:num_requests_running {value}\nvllm:num_requests_waiting 2\n".encode(), 7.0) == Gauges(
        2.0, None, None, 7.0
    )


def test_what_is_missing_is_not_known():
    """A server that tells one of them tells nothing of the others, and not that they are 0."""
    assert read(b"vllm:num_requests_waiting 0\n", 7.0) == Gauges(0.0, None, None, 7.0)


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(junk):
    """Whatever a server sends, there is an answer, and no number but those written there."""
    found = read(b"vllm:num_requests_waiting 2\n" + junk, 0.0)

    assert found is not None
    assert found.waiting is not None


def test_the_mean_gap_is_that_of_the_last_rounds():
    """An engine that turned slow shows it within ROUNDS rounds, however fast it was before."""
    course, gaps, gaps_s = Course(), 0, 0.0
    for second in range(100):
        course.note(float(second), gaps, gaps_s, None)
        gaps, gaps_s = gaps + 50, gaps_s + 1.0
    fast = course.vitals(None)
    for second in range(100, 100 + ROUNDS + 1):
        course.note(float(second), gaps, gaps_s, None)
        gaps, gaps_s = gaps + 5, gaps_s + 1.0

    assert fast == Vitals(gap_s=pytest.approx(0.02))
    assert course.vitals(None).gap_s == pytest.approx(0.2)


def test_too_few_gaps_say_nothing():
    """One late token is not a slow server."""
    course = Course()
    course.note(0.0, 0, 0.0, None)
    course.note(1.0, GAPS_LEAST - 1, 9.0, None)

    assert course.vitals(None).gap_s is None
    assert Course().vitals(None) == Vitals()


@pytest.mark.parametrize(("then", "per_s"), [(10.0, 5.0), (2.0, 0.0)])
def test_preemptions_are_counted_by_the_second(then, per_s):
    """A counter that falls is that of a server which was started anew."""
    course = Course()
    before, now = Gauges(1.0, 0.5, 0.0 if per_s else 100.0, 0.0), Gauges(2.0, 0.6, then, 2.0)
    course.note(0.0, 0, 0.0, before)
    course.note(2.0, 0, 0.0, now)

    assert course.vitals(now) == Vitals(None, 2.0, 0.6, per_s)
