"""What the digest promises to find, and finds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.vllm_plugin import tensors
from vllm_plugin.digest import Header, Pages, Part, Rank, seal

LAYOUT = tensors.LAYOUTS[0]
TILE_WORDS = 4096
SAMPLES = 4000


def flat(words: np.ndarray) -> Pages:
    """Pages of plain words. Shape: (blocks, words)."""
    return Pages([Part.of(words, "block ...")])


def writable(view: np.ndarray) -> np.ndarray:
    """The same memory, to be damaged."""
    address, _ = view.__array_interface__["data"]
    return np.asarray(SimpleNamespace(__array_interface__=view.__array_interface__ | {"data": (address, False)}))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2)


def test_every_single_wrong_bit_of_a_tile_is_found(rng):
    """All of its 131072 bits, one after the other."""
    words = rng.integers(0, 2**32, (1, TILE_WORDS), dtype=np.uint32)
    (right,) = flat(words).sums([0])
    each = np.arange(TILE_WORDS)

    wrong = np.repeat(words, TILE_WORDS, axis=0)

    for bit in range(32):
        wrong[each, each] ^= np.uint32(1 << bit)
        assert (flat(wrong).sums(each) != right).all()
        wrong[each, each] ^= np.uint32(1 << bit)
    assert (flat(wrong).sums(each) == right).all()


@pytest.mark.parametrize("top_bits_only", [False, True])
def test_two_wrong_bits_are_found(top_bits_only, rng):
    """Sampled; that no two are missed is shown of the keys. Top bits are the hardest: 32 bits of a key are left."""
    words = rng.integers(0, 2**32, (1, TILE_WORDS), dtype=np.uint32)
    (right,) = flat(words).sums([0])
    wrong, each = np.repeat(words, SAMPLES, axis=0), np.arange(SAMPLES)
    first = rng.integers(0, TILE_WORDS, SAMPLES)
    second = (first + rng.integers(1, TILE_WORDS, SAMPLES)) % TILE_WORDS
    for place in (first, second):
        bit = np.full(SAMPLES, 31) if top_bits_only else rng.integers(0, 32, SAMPLES)
        wrong[each, place] ^= np.uint32(1) << bit.astype(np.uint32)

    assert (flat(wrong).sums(each) != right).all()


def test_a_changed_word_is_found_whatever_it_becomes(rng):
    """Keys are odd, so no change of one word is a multiple of 2^64."""
    words = rng.integers(0, 2**32, (1, TILE_WORDS), dtype=np.uint32)
    (right,) = flat(words).sums([0])
    wrong, each = np.repeat(words, SAMPLES, axis=0), np.arange(SAMPLES)
    wrong[each, rng.integers(0, TILE_WORDS, SAMPLES)] += rng.integers(1, 2**32, SAMPLES, dtype=np.uint32)

    assert (flat(wrong).sums(each) != right).all()


@pytest.mark.parametrize("layout", tensors.LAYOUTS)
def test_a_wrong_bit_of_any_layer_and_layout_is_found(layout, rng):
    """Sampled over whole pages; other pages' sums stay as they are."""
    pages = tensors.pages([tensors.logical(rng, 3, 32, 4, 64, "bfloat16") for _ in range(5)], layout)
    right = pages.sums([0, 1, 2])
    for _ in range(300):
        view = writable(pages.parts[rng.integers(5)].view(1))
        place = tuple(rng.integers(0, view.shape))
        bit = np.uint32(1) << np.uint32(rng.integers(32))

        view[place] ^= bit
        changed = pages.sums([0, 1, 2]) != right
        view[place] ^= bit

        assert changed.sum(axis=1).tolist() == [0, 1, 0]
    assert (pages.sums([0, 1, 2]) == right).all()


@pytest.mark.parametrize("row_words", [1, 4, 32, 64])
def test_swapped_rows_are_found(row_words, rng):
    """Two tokens of one head, or two heads, that changed places, anywhere in the page."""
    words = rng.integers(0, 2**32, (1, 8 * TILE_WORDS), dtype=np.uint32)
    (right,) = flat(words).sums([0])
    rows = words.size // row_words
    for _ in range(300):
        one, other = rng.choice(rows, 2, replace=False)
        wrong = words.reshape(rows, row_words).copy()
        wrong[[one, other]] = wrong[[other, one]]

        assert (flat(wrong.reshape(1, -1)).sums([0]) != right).any()


class Kept:
    """A page with its digest, as a store keeps it, and all that its header says."""

    def __init__(self, **changes: object) -> None:
        self.said = {
            "model": b"fingerprint of the weights", "rank": Rank(), "pool": "0", "chain": b"chain of tokens",
            "position": 4096, "tokens": 32,
        } | changes  # fmt: skip

    def digest(self, pages: Pages, block: int = 0) -> bytes:
        header = Header(
            form=pages.form, page_bytes=pages.page_bytes, model=self.said["model"], rank=self.said["rank"],
            pool=self.said["pool"],
        )  # fmt: skip
        page = header.page(self.said["chain"], self.said["position"], self.said["tokens"])
        return seal(page, pages.sums([block])[0])


@pytest.fixture
def layers(rng) -> list[torch.Tensor]:
    return [tensors.logical(rng, 3, 32, 4, 128, "bfloat16") for _ in range(2)]


def test_the_right_page_has_its_digest_in_every_layout(layers):
    """The digest is of the words, not of where they lie."""
    digests = {Kept().digest(tensors.pages(layers, layout), 1) for layout in tensors.LAYOUTS}

    assert len(digests) == 1
    assert len(digests.pop()) == 16


@pytest.mark.parametrize(
    "change",
    [
        {"chain": b"chain of other tokens"}, {"position": 4128}, {"model": b"fingerprint of the next weights"},
        {"tokens": 31}, {"pool": "1"}, {"rank": Rank(tensor=1, tensors=2)}, {"rank": Rank(pipeline=1, pipelines=2)},
        {"rank": Rank(context=1, contexts=2)},
    ],
    ids=str,
)  # fmt: skip
def test_a_valid_page_in_the_wrong_place_is_found(change, layers):
    """The same bytes, of other tokens, at another position, of another model, rank, pool or length."""
    pages = tensors.pages(layers, LAYOUT)

    assert Kept(**change).digest(pages) != Kept().digest(pages)


def test_a_page_of_another_dtype_or_form_is_found(layers):
    """The same bytes, said to be of another dtype, or of other sizes."""
    same = [[layer.view(torch.float16) for layer in layers], [layer.reshape(3, 2, 16, 8, 128) for layer in layers]]
    right = Kept().digest(tensors.pages(layers, "block kv token head dim"))

    for contents in same:
        pages = tensors.pages(contents, "block kv token head dim")
        assert pages.bytes(0) == tensors.pages(layers, LAYOUT).bytes(0)
        assert Kept().digest(pages) != right


def test_swapped_pages_and_swapped_layers_are_found(layers):
    """Another block's page under this one's header, and a page whose layers changed places."""
    pages, turned = tensors.pages(layers, LAYOUT), tensors.pages(layers[::-1], LAYOUT)

    assert len({Kept().digest(pages, 0), Kept().digest(pages, 1), Kept().digest(turned, 0)}) == 3


def test_swapped_tiles_are_found(rng):
    """Sums are in order under the seal, though each is of the same keys."""
    words = rng.integers(0, 2**32, (1, 4, TILE_WORDS), dtype=np.uint32)
    wrong = words[:, [0, 2, 1, 3]].copy()

    assert sorted(flat(wrong).sums([0])[0]) == sorted(flat(words).sums([0])[0])
    assert Kept().digest(flat(wrong)) != Kept().digest(flat(words))


def test_a_zeroed_page_is_found(layers):
    """Memory that was given back and cleared, whole or a layer of it."""
    right = Kept().digest(tensors.pages(layers, LAYOUT))

    for zeroed in ([layers[0], torch.zeros_like(layers[1])], [torch.zeros_like(layer) for layer in layers]):
        assert Kept().digest(tensors.pages(zeroed, LAYOUT)) != right


def test_a_page_that_is_cut_where_it_is_zero_is_found():
    """Tiles are filled up with zeros, so that the sums are the same: the length is in the header."""
    whole = np.zeros((1, TILE_WORDS), np.uint32)
    whole[0, :100] = 7
    cut = whole[:, :128].copy()

    assert flat(cut).sums([0]).tolist() == flat(whole).sums([0]).tolist()
    assert Kept().digest(flat(cut)) != Kept().digest(flat(whole))
