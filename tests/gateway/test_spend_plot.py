"""The plot of what was spent: every bar, every part, in proportion."""

import io
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from gateway.spend import Spent
from gateway.spend_plot import BARS_MAX, NAMES_MAX, REST, STEPS_S, plot, show, step_for, svg


def spent(name, cost=0, tokens=0):
    return Spent(name, requests=1, input_tokens=tokens, cost=cost)


def test_a_span_has_no_more_bars_than_can_be_read():
    """Of lengths that clocks have; an hour, a day, a month."""
    assert [step_for(span) for span in (3600, 86_400, 30 * 86_400)] == [300, 3600, 86_400]
    assert all(span / step_for(span) <= BARS_MAX for span in range(60, 2_000_000, 977))
    assert step_for(10**9) == STEPS_S[-1]


def test_hours_in_which_nothing_was_spent_are_shown():
    """Else a pause would be none."""
    found = plot({7200: [spent("bob", 5)], 0: [spent("eve", 1), spent("bob", 2)]}, 3600)

    assert found.names == ["bob", "eve"]
    assert found.bars == {0: [2, 1], 3600: [0, 0], 7200: [5, 0]}
    assert (found.most, found.money) == (5, True)


def test_where_all_is_free_tokens_are_drawn():
    """They are what there is."""
    found = plot({0: [spent("bob", tokens=1_500)]}, 60)

    assert (found.bars, found.money, found.worded(1_500)) == ({0: [1_500]}, False, "1,500")


def test_many_names_are_a_few_and_the_rest():
    """The biggest have colours of their own."""
    found = plot({0: [spent(f"user {n:02d}", cost=100 - n) for n in range(20)]}, 60)

    assert list(found.names) == [f"user {n:02d}" for n in range(NAMES_MAX)] + [REST]
    assert sum(found.bars[0]) == sum(100 - n for n in range(20))


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abcdefghij"), st.integers(0, 10**12)), max_size=40))
def test_bars_are_as_long_as_what_they_stand_for(parts):
    """In characters to half a one, in the SVG to a tenth of a point; and whatever was spent can be seen."""
    times = {}
    for hour, name, cost in parts:
        times.setdefault(hour * 3600, []).append(spent(name, cost))
    found, out = plot(times, 3600), io.StringIO()

    show(found, out)
    lines = out.getvalue().splitlines()[: len(found.bars)]
    lengths = [sum(line.count(mark) for mark in "█▓▒░▚▞▖") for line in lines]
    root = ElementTree.fromstring(svg(found, "user"))
    heights = [float(one.get("height")) for one in root.iter("{http://www.w3.org/2000/svg}rect") if len(one)]

    most = max(lengths, default=0)
    for length, amounts in zip(lengths, found.bars.values(), strict=True):
        assert abs(length - most * sum(amounts) / (found.most or 1)) <= 1
        assert (length > 0) == (sum(amounts) > 0)
    if found.most:
        total = sum(sum(amounts) for amounts in found.bars.values())
        assert abs(sum(heights) - 240 * total / found.most) < 3


def test_names_are_text_in_the_drawing_too():
    """Whatever a client calls itself."""
    found = plot({0: [spent("<script>&", 5)]}, 60)

    assert "<script>" not in svg(found, "<user>")
    ElementTree.fromstring(svg(found, "<user>"))
