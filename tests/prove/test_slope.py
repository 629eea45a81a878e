"""A slope is told from noise, also from noise that lasts."""

import random

import pytest

from tests.prove.slope import BIN_S, BINS_MIN, Slope, slope

SPAN_S, EVERY_S = 1800.0, 2.0
MEMORY, LASTS, SHOCK = 80.0, 0.99, 0.05  # MB; noise of which a half is there a minute later, some 1.4 MB wide in all


def series(seed: int, leak_per_s: float = 0.0) -> list[tuple[float, float]]:
    """Half an hour of memory: autoregressive noise, and what leaks."""
    rng, off, found = random.Random(seed), 0.0, []
    for number in range(int(SPAN_S / EVERY_S)):
        off = LASTS * off + rng.gauss(0, SHOCK)
        at_s = EVERY_S * number
        found.append((at_s, MEMORY + off + leak_per_s * at_s))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_noise_that_lasts_is_no_growth(seed: int):
    """Whatever a random walk that comes back happens to do."""
    assert slope(series(seed)).inside_noise


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_of_a_few_times_the_noise_is_told(seed: int):
    """Six megabytes in half an hour; and the interval is about them."""
    found = slope(series(seed, leak_per_s=6 / SPAN_S))

    assert not found.inside_noise
    assert 4 < found.grown < 8
    assert found.low < found.per_s < found.high


def test_what_shrinks_does_not_grow():
    """However sure that is."""
    assert slope(series(1, leak_per_s=-6 / SPAN_S)).inside_noise


def test_a_leak_without_noise_is_told_however_small():
    """Then the interval is but a point."""
    found = slope([(at_s, 1.0 + 1e-6 * at_s) for at_s in range(1800)])

    assert found.per_s == pytest.approx(1e-6)
    assert not found.inside_noise


def test_single_spikes_are_not_what_grows():
    """A sample in fifty is far off, all of these in the second half; the middle of the others is flat."""
    points = [(at_s, 99.0 if at_s > 900 and at_s % 50 == 0 else 80.0) for at_s in range(0, 1800, 2)]

    assert slope(points).per_s == 0


def test_too_few_samples_say_nothing():
    """Rather than something."""
    with pytest.raises(ValueError, match="too few"):
        slope([(at_s, 1.0) for at_s in range(int(BIN_S * (BINS_MIN - 1)))])


def test_an_interval_is_wider_where_noise_lasts():
    """The same values in another order have none of it, and say more."""
    lasting = series(1)
    values = [value for _, value in lasting]
    random.Random(1).shuffle(values)

    one, other = slope(lasting), slope([(at_s, value) for (at_s, _), value in zip(lasting, values, strict=True)])

    assert one.high - one.low > 3 * (other.high - other.low)


@pytest.mark.parametrize(
    ("low", "noise", "inside"), [(-1.0, 5.0, True), (0.5, 20.0, True), (0.5, 5.0, False), (-1.0, 20.0, True)]
)
def test_growth_is_what_is_sure_and_more_than_the_noise(low: float, noise: float, inside: bool):
    """Ten in all; either of the two excuses it."""
    assert Slope(per_s=1.0, low=low, high=3.0, span_s=10.0, noise=noise).inside_noise is inside
