"""The sums of tiles: one value, whoever computes it and however the words are laid out."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vllm_plugin import tensors
from vllm_plugin.digest import LayoutRefused, Pages, Part

WAYS = {"numba": lambda pages, ids: pages.sums(ids), "torch": lambda pages, ids: by_torch(pages, ids)}


def by_torch(pages: Pages, ids: list[int]) -> np.ndarray:
    return pages.launch(ids).numpy().view(np.uint64)


def program(text: str) -> str:
    """What a fresh Python says."""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(64)


@pytest.mark.parametrize("dtype", tensors.SIZES)
@pytest.mark.parametrize("layout", tensors.LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
def test_all_ways_and_layouts_give_the_defined_sums(way, layout, dtype, rng):
    """Two layers of more than a tile each, blocks in any order, also twice."""
    layers = [tensors.logical(rng, 6, 48, 3, 64, dtype) for _ in range(2)]
    ids = [5, 0, 3, 3, 1]

    found = WAYS[way](tensors.pages(layers, layout), ids)

    assert found.dtype == np.uint64
    assert found.tolist() == tensors.expected(layers, ids).tolist()


@settings(deadline=None, max_examples=60)
@given(
    layers=st.integers(1, 6), blocks=st.integers(1, 5), tokens=st.integers(1, 40), heads=st.integers(1, 5),
    dim=st.sampled_from([4, 12, 96, 128, 160]), dtype=st.sampled_from(sorted(tensors.SIZES)),
    layout=st.sampled_from(tensors.LAYOUTS), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_any_geometry_gives_the_defined_sums(layers, blocks, tokens, heads, dim, dtype, layout, seed, data):
    """Runs that tiles cut, tiles that are not full, any number of layers and blocks."""
    rng = np.random.default_rng(seed)
    contents = [tensors.logical(rng, blocks, tokens, heads, dim, dtype) for _ in range(layers)]
    pages = tensors.pages(contents, layout)
    ids = data.draw(st.lists(st.integers(0, blocks - 1), max_size=6))

    found, rows = pages.sums(ids), tensors.expected(contents, ids)

    assert found.shape == (len(ids), pages.tiles)
    assert found.tolist() == rows.tolist() == by_torch(pages, ids).tolist()
    assert all(pages.bytes(block) == b"".join(tensors.raw(layer[block]) for layer in contents) for block in set(ids))


def test_layers_of_several_kinds_keep_their_order(rng):
    """Layers of other sizes, also between others, and the two tensors of a state."""
    wide, narrow = tensors.logical(rng, 3, 32, 4, 128, "float16"), tensors.logical(rng, 3, 32, 1, 64, "float16")
    convolution, state = torch.randn(3, 4, 33), torch.randn(3, 2, 48, 64)
    same_runs = tensors.logical(rng, 3, 32, 2, 128, "float16")
    contents = [wide, narrow, wide.clone(), convolution, state, same_runs, wide.flip(0)]
    layouts = [*[tensors.LAYOUTS[0]] * 3, "block ...", "block ...", tensors.LAYOUTS[0], "kv block head token dim"]
    pages = Pages([
        Part.of(layer if layout == "block ..." else tensors.laid_out(layer, layout), layout)
        for layer, layout in zip(contents, layouts, strict=True)
    ])  # fmt: skip

    assert pages.sums([2, 0]).tolist() == tensors.expected(contents, [2, 0]).tolist()
    assert by_torch(pages, [2, 0]).tolist() == tensors.expected(contents, [2, 0]).tolist()
    assert pages.form == (
        "1 of float16 kv2 token32 head4 dim128, 1 of float16 kv2 token32 head1 dim64, "
        "1 of float16 kv2 token32 head4 dim128, 1 of float32 axis0x4 axis1x33, 1 of float32 axis0x2 axis1x48 axis2x64, "
        "1 of float16 kv2 token32 head2 dim128, 1 of float16 kv2 token32 head4 dim128"
    )


def test_states_are_digested_where_they_lie(rng):
    """States' blocks lie as far apart as the page is long, of which they are a part (vLLM's hybrid models)."""
    memory = torch.from_numpy(rng.integers(0, 256, 4 * 8192, dtype=np.uint8))
    state = torch.as_strided(memory.view(torch.float32), (4, 16, 10), (2048, 10, 1), 100)

    pages = Pages([Part.of(state, "block ...")])

    assert pages.sums([3, 1]).tolist() == tensors.expected([state], [3, 1]).tolist()
    assert by_torch(pages, [3, 1]).tolist() == tensors.expected([state], [3, 1]).tolist()


def test_latent_pages_of_mla(rng):
    """No K and V: one axis of tokens, one of the latent."""
    latent = torch.from_numpy(rng.integers(0, 2**16, (5, 64, 576), dtype=np.uint16)).view(torch.bfloat16)

    pages = Pages([Part.of(latent, "block token dim")] * 3)

    assert pages.tiles == 3 * 5
    assert pages.sums([4]).tolist() == tensors.expected([latent] * 3, [4]).tolist()


def test_a_page_of_many_kernel_blocks_is_as_one_of_large_blocks(rng):
    """Where the attention kernel's blocks are smaller than the page's, the digest does not show it."""
    layer = tensors.logical(rng, 2, 64, 2, 64, "bfloat16")
    split = layer.reshape(2, 2, 4, 16, 2, 64).permute(0, 2, 4, 3, 1, 5).contiguous()  # block token head token kv dim

    pages = Pages([Part.of(split.flatten(4), "block token head token kv.dim")])

    assert pages.sums([1, 0]).tolist() == tensors.expected([layer], [1, 0]).tolist()
    assert pages.form == tensors.pages([layer], tensors.LAYOUTS[0]).form


@pytest.mark.parametrize("layout", tensors.LAYOUTS)
def test_stored_pages_have_the_sums_of_those_in_the_cache(layout, rng):
    """What is written out, one page after the other, is verified where it lies."""
    layers = [tensors.logical(rng, 4, 24, 2, 96, "bfloat16") for _ in range(3)]
    pages = tensors.pages(layers, layout)

    stored = pages.packed(b"".join(pages.bytes(block) for block in (2, 0)))

    assert stored.sums([0, 1]).tolist() == pages.sums([2, 0]).tolist()
    assert (stored.form, stored.page_bytes) == (pages.form, pages.page_bytes)
    assert stored.bytes(1) == pages.bytes(0)


def test_a_stored_page_that_is_cut_short_is_refused(rng):
    """Not whole pages, or none: there is nothing to compare."""
    pages = tensors.pages([tensors.logical(rng, 1, 24, 2, 96, "bfloat16")], tensors.LAYOUTS[0])

    for cut in (pages.bytes(0)[:-4], 2 * pages.bytes(0)[:-4], b""):
        with pytest.raises(ValueError, match="no pages of"):
            pages.packed(cut)


def test_sums_are_of_the_memory_as_it_is_now(rng):
    """Nothing is kept: pages are made once, and summed whenever."""
    layer = tensors.logical(rng, 2, 16, 2, 64, "float32")
    pages = tensors.pages([layer], "block kv token head dim")
    before = pages.sums([1])

    pages.parts[0].tensor[1, 0, 0, 0, 0] += 1.0

    assert (pages.sums([1]) != before).any()


@pytest.mark.parametrize("ids", [[-1], [0, 3], [2**40]])
def test_blocks_that_are_not_there_are_not_read(ids, rng):
    """The sums read raw memory, so a block is looked at first."""
    pages = tensors.pages([tensors.logical(rng, 3, 16, 2, 64, "float32")], tensors.LAYOUTS[0])

    for ask in (pages.sums, pages.launch, lambda ids: pages.bytes(ids[-1])):
        with pytest.raises(IndexError, match="blocks are 0 to 2"):
            ask(ids)


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "why"),
    [
        ((2, 16, 4, 33), torch.bfloat16, "block token head dim", None),  # one run, odd heads in it: whole words still
        ((2, 3, 33), torch.bfloat16, "block token dim", "not whole words"),
        ((4, 3, 16, 2 * 33), torch.bfloat16, "block head token kv.dim", "run 66"),
        ((4, 3, 16, 2 * 6), torch.uint8, "block head token kv.dim", "run 6"),
        ((4, 3, 16, 33), torch.uint8, "block head token kv.dim", "halves"),
        ((4, 3, 16, 64), torch.uint8, "block head token", "3 axes"),
        ((4, 3, 16, 64), torch.uint8, "block head token width", "width"),
        ((4, 3, 16, 64), torch.uint8, "kv head token dim", "must name the block's axis"),
        ((0, 3, 16, 64), torch.uint8, "block head token dim", "nothing to digest"),
    ],
)
def test_what_is_not_whole_words_is_refused(shape, dtype, layout, why):
    """With the reason; all else is exact."""
    tensor = torch.zeros(shape, dtype=dtype)
    if why is None:
        assert Part.of(tensor, layout).words == 16 * 4 * 33 // 2
        return
    with pytest.raises(LayoutRefused, match=why):
        Part.of(tensor, layout)


def test_memory_that_begins_within_a_word_is_refused():
    """A view two bytes further is as good as a page to torch, and of other words."""
    with pytest.raises(LayoutRefused, match="address"):
        Part.of(torch.zeros(129, dtype=torch.bfloat16)[1:].view(2, 64), "block ...")


def test_importing_costs_neither_numba_nor_torch():
    """They are imported where they are used; vLLM never."""
    heavy = "{'numba', 'torch', 'triton', 'vllm', 'gateway', 'guards'}"

    assert program(f"import sys, vllm_plugin.digest; print({heavy} & set(sys.modules))") == "set()"


WARM = """
import numpy as np, vllm_plugin.digest as digest
pages = digest.Pages([digest.Part.of(np.arange(4096, dtype=np.uint32).reshape(2, 2048), "block ...")])
pages.warm()
from vllm_plugin.digest.numba_sums import _sums
pages.sums([1, 0, 1])
print(type(_sums._cache).__name__, sum(_sums.stats.cache_hits.values()), len(_sums.signatures))
"""


def test_what_was_compiled_once_is_compiled_for_good():
    """The next process finds it on the disk; and no argument makes it compile anything else."""
    from vllm_plugin.digest import numba_sums

    assert len(numba_sums._sums.signatures) == 1
    assert program(WARM) == "FunctionCache 1 1"


def test_what_is_compiled_is_all_of_one_file():
    """What was compiled before is thrown away when its own file changes, and not when another one does."""
    from numba.extending import _Intrinsic

    from vllm_plugin.digest import numba_copies, numba_sums

    for module, functions in ((numba_copies, ("_copy_out", "_copy_in")), (numba_sums, ("_sums",))):
        for function in functions:
            of = getattr(module, function).py_func
            made = [one for name in of.__code__.co_names if isinstance(one := of.__globals__.get(name), _Intrinsic)]
            assert {one._defn.__module__ for one in made} == {of.__module__}


def test_it_compiles_where_nothing_can_be_kept(monkeypatch):
    """In a container whose folders are all read-only it is compiled in each process."""
    from numba.core import caching

    from vllm_plugin.digest import numba_code, numba_sums

    def nothing(keys, address, block_stride, column, offset, key, words, tile, ids, found):
        pass

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    assert type(numba_code.compiled(numba_sums.SIGNATURE)(nothing)._cache).__name__ == "NullCache"


def test_the_speed_can_be_measured():
    """The program that says what it costs runs, and counts in copies."""
    run = "import sys; sys.argv += ['--json', '--quick']; from loadtests.digest_speed import main; main()"

    rows = json.loads(program(run))

    assert {row["what"]: row["of_copy"] for row in rows["rows"]}["copy"] == 1.0
    assert all(row["gb_per_s"] > 0 for row in rows["rows"])
    assert rows["page_bytes"] == 2 << 20
