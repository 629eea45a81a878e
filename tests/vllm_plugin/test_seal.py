"""Header and seal: what is packed, and what is over it."""

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from tests.vllm_plugin.tensors import KEYS
from vllm_plugin.digest import DIGEST_BYTES, Header, Pages, Part, Rank, seal, seal_keyed

KEY = bytes(range(32))
HEADERS = st.fixed_dictionaries({
    "model": st.binary(min_size=1, max_size=3), "form": st.text("ab", max_size=3), "pool": st.text("ab", max_size=3),
    "page_bytes": st.integers(0, 2), "rank": st.builds(Rank, *[st.integers(0, 1)] * 6),
    "chain": st.binary(min_size=1, max_size=3), "position": st.integers(0, 2), "tokens": st.integers(0, 2),
})  # fmt: skip


def packed(*, chain: bytes, position: int, tokens: int, **common) -> bytes:
    return Header(**common).page(chain, position, tokens)


PLAIN = {"pool": "p", "page_bytes": 1, "rank": Rank(), "chain": b"c", "position": 1, "tokens": 1}


@given(HEADERS, HEADERS)
@example(PLAIN | {"model": b"ma", "form": "b"}, PLAIN | {"model": b"m", "form": "ab"})
def test_no_two_headers_are_packed_alike(one, other):
    """Also where bytes move from one field to its neighbour: lengths are packed too."""
    assert (packed(**one) == packed(**other)) == (one == other)


def test_the_digest_is_what_it_is_defined_to_be():
    """BLAKE3 over the header, with its length before it, and the sums in order: 128 bits."""
    header, sums = b"header", np.array([1, 2**64 - 1], np.uint64)
    over = b"\x06\0\0\0header" + b"\x01" + b"\0" * 7 + b"\xff" * 8

    assert seal(header, sums) == blake3(over).digest()[:16]
    assert len(seal(header, sums)) == DIGEST_BYTES


def test_nothing_moves_between_header_and_sums():
    """A header that ends like a sum is another one."""
    sums = np.array([5, 7], np.uint64)

    assert seal(b"h", sums) != seal(b"h" + sums[:1].tobytes(), sums[1:])


def test_a_digest_that_was_stored_stays_right():
    """A value from the first day: whoever changes anything that it depends on must change the version too."""
    header = Header(model=b"m", form="1 of float32 x1", page_bytes=4, rank=Rank(), pool="0").page(b"c", 16, 8)

    assert seal(header, np.array([3, 4], np.uint64)).hex() == "9b5052a2b8bf661217cf52685522fa2a"


def page_of_equal_sums() -> tuple[np.ndarray, np.ndarray]:
    """Two pages that differ in four bits that were chosen: top bits, of words whose keys cancel mod 2^33."""
    keys = np.array(KEYS[:1024], np.uint64)
    one, other = np.triu_indices(len(keys), 1)
    differences = (keys[one] - keys[other]) % np.uint64(2**33)
    order = np.argsort(differences)
    (at, *_) = np.flatnonzero(np.diff(differences[order]) == 0)
    pair, same = order[at], order[at + 1]
    right, wrong = np.zeros((2, 1, 4096), np.uint32)
    right[0, [other[pair], one[same]]] = wrong[0, [one[pair], other[same]]] = 2**31
    return right, wrong


def test_a_keyed_seal_is_over_bytes_because_sums_can_be_forged():
    """Whoever knows the keys finds another page with the same sums; not so of the bytes."""
    right, wrong = (Pages([Part.of(words, "block ...")]) for words in page_of_equal_sums())

    assert right.bytes(0) != wrong.bytes(0)
    assert right.sums([0]).tolist() == wrong.sums([0]).tolist()
    assert seal_keyed(KEY, b"header", [right.bytes(0)]) != seal_keyed(KEY, b"header", [wrong.bytes(0)])


def test_a_keyed_seal_is_of_key_header_and_bytes():
    """It changes with any of them, and is cut like the bytes or not."""
    right = seal_keyed(KEY, b"header", [b"page", b"bytes"])

    assert right == seal_keyed(KEY, b"header", [b"pagebytes"])
    assert len(right) == DIGEST_BYTES
    assert right != seal_keyed(KEY[::-1], b"header", [b"pagebytes"])
    assert right != seal_keyed(KEY, b"headed", [b"pagebytes"])
    assert right != seal_keyed(KEY, b"header", [b"pagebytez"])
    assert right != seal_keyed(KEY, b"headerp", [b"agebytes"])


@pytest.mark.parametrize("length", [0, 16, 33])
def test_a_key_of_another_length_is_refused(length):
    """With a word, and not by what BLAKE3 says."""
    with pytest.raises(ValueError, match="the key must have 32 bytes"):
        seal_keyed(bytes(length), b"header", [b"page"])
