"""The keys are what two wrong bits' certain detection rests on, and may never change."""

import numpy as np
import pytest

from tests.vllm_plugin import tensors
from vllm_plugin.digest.keys import KEYS, TILE_WORDS, are_apart


def changed(at: int, to: int) -> np.ndarray:
    keys = KEYS.copy()
    keys[at] = np.uint64(to % 2**64)
    return keys


def test_no_two_wrong_bits_can_cancel():
    """Keys are odd, and no two are equal or each other's negative mod 2^33; reckoned here without the product."""
    low = [int(key) % 2**33 for key in KEYS]

    assert len(KEYS) == TILE_WORDS == 4096
    assert all(key % 2 for key in low)
    assert len(set(low) | {2**33 - key for key in low}) == 2 * TILE_WORDS
    assert are_apart(KEYS)


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(changed(7, int(KEYS[7]) - 1), id="even"),
        pytest.param(changed(7, int(KEYS[4000])), id="equal"),
        pytest.param(changed(7, int(KEYS[4000]) + 2**33), id="equal mod 2^33"),
        pytest.param(changed(7, -int(KEYS[4000])), id="negative"),
        pytest.param(changed(7, 5 * 2**33 - int(KEYS[4000])), id="negative mod 2^33"),
    ],
)
def test_bad_keys_are_known(keys):
    """The check that runs at import says no where it should."""
    assert not are_apart(keys)


def test_equal_low_bits_do_cancel():
    """Why mod 2^33: two top bits, of words whose keys are equal there, leave a sum as it was."""
    one, other = int(KEYS[0]), int(KEYS[0]) + 2**33

    assert (one * 2**31 - other * 2**31) % 2**64 == 0


def test_the_keys_never_change():
    """A digest that was stored is of these keys. They come from the seed as the tests' own reckoning says."""
    assert KEYS.tolist() == tensors.KEYS
    assert [hex(key) for key in KEYS[:2]] == ["0x9168536673f51759", "0x50a98b9bf4f62771"]
    assert not KEYS.flags.writeable
