"""The kernel for GPUs: what it computes, in triton's interpreter where there is no GPU; and that it compiles."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.vllm_plugin import tensors
from vllm_plugin.digest import Pages, Part

pytestmark = pytest.mark.triton
WHERE = "triton is not in this environment: make it with `python3 scripts/install.py triton`, and use its python"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is defined
triton = pytest.importorskip("triton", reason=WHERE)

from vllm_plugin.digest import triton_sums  # noqa: E402 -- not before that


def on_device(contents: list[torch.Tensor], layout: str) -> list[Part]:
    return [Part.of(tensors.laid_out(content, layout).to(DEVICE), layout) for content in contents]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("blocks_per_program", [triton_sums.FEW, triton_sums.MANY])
@pytest.mark.parametrize(("dim", "wide"), [(64, 4), (44, 1)])  # of 44, heads are of 88 bytes: not of 16 each
@pytest.mark.parametrize("layout", tensors.LAYOUTS)
def test_the_kernel_gives_the_defined_sums(layout, dim, wide, blocks_per_program, rng):
    """Of any bits, blocks in any order, also twice; words loaded one by one, and four at once."""
    contents = [tensors.logical(rng, 11, 48, 2, dim, "bfloat16") for _ in range(2)]
    ids = [10, 0, 3, 3, 7, 9, 8, 2, 1]
    parts = on_device(contents, layout)  # kept: tables know only addresses
    tables = triton_sums.Tables.of(parts)

    found = triton_sums._launch(tables, np.array(ids), blocks_per_program).cpu().numpy().view(np.uint64)

    assert tables.wide == (wide if "token head" not in layout else 4)  # there heads lie together
    assert found.tolist() == tensors.expected(contents, ids).tolist()


def test_one_launch_is_for_layers_of_several_kinds(rng):
    """Other sizes, dtypes and layouts, states among them; through the same sums as everywhere."""
    contents = [tensors.logical(rng, 3, 16, 4, 128, "float16"), torch.randn(3, 2, 33, 64), torch.randn(3, 4, 32)]
    contents += [tensors.logical(rng, 3, 32, 3, 64, "float32")]
    parts = on_device(contents[:1], tensors.LAYOUTS[0])
    parts += [Part.of(content.to(DEVICE), "block ...") for content in contents[1:3]]
    parts += on_device(contents[3:], tensors.LAYOUTS[1])
    pages = Pages(parts)

    found = triton_sums.sums(triton_sums.Tables.of(parts), np.array([2, 0])).cpu().numpy().view(np.uint64)

    assert found.tolist() == pages.sums([2, 0]).tolist() == tensors.expected(contents, [2, 0]).tolist()


def test_no_blocks_are_no_launch(rng):
    """A step that fills no page costs nothing."""
    tables = triton_sums.Tables.of(on_device([tensors.logical(rng, 2, 16, 2, 64, "float32")], tensors.LAYOUTS[0]))

    assert triton_sums.sums(tables, np.array([], np.int64)).shape == (0, 1)


def test_many_blocks_share_a_program_only_where_programs_are_enough(rng, monkeypatch):
    """Else most of a GPU would have nothing to do."""
    tables = triton_sums.Tables.of(on_device([tensors.logical(rng, 1, 16, 2, 64, "float32")], tensors.LAYOUTS[0]))
    asked = []
    monkeypatch.setattr(triton_sums, "_launch", lambda tables, ids, blocks: asked.append(blocks))

    for count in (1, 8 * triton_sums.ENOUGH_PROGRAMS - 1, 8 * triton_sums.ENOUGH_PROGRAMS):
        triton_sums.sums(tables, np.zeros(count, np.int64))
    triton_sums.warm(tables)

    assert asked == [1, 1, 8, 1, 8]


COMPILED = """
import json, pathlib, subprocess
from triton import compile, knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from vllm_plugin.digest import triton_sums

kernel, found = triton_sums._tile_sums, {}
for wide in (1, triton_sums.WIDE):
    for blocks in (triton_sums.FEW, triton_sums.MANY):
        types = {"count": "i32", "columns": "i32", "low": "*i32", "high": "*i32"}
        constants = {"TILE": 4096, "WORD": 4, "WIDE": wide, "BLOCKS": blocks}
        signature = {name: "constexpr" if name in constants else types.get(name, "*i64") for name in kernel.arg_names}
        pointers = [at for at, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
        aligned = {(at,): [["tt.divisibility", 16]] for at in pointers}
        source = ASTSource(kernel, signature, constants, aligned)
        made = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": triton_sums.WARPS})
        pathlib.Path("kernel").write_bytes(made.asm["cubin"])
        use = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "kernel"]
        found[f"{wide} {blocks}"] = made.asm["ptx"], subprocess.check_output(use, text=True)
print(json.dumps(found))
"""


def test_it_compiles_for_an_h100(tmp_path):
    """By triton's own compiler, which needs no GPU: nothing is spilt, keys and words are loaded 16 bytes at once."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILED],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code = json.loads(done.stdout)

    assert len(code) == 4
    loads = tensors.TILE_BYTES // 16 // 32 // triton_sums.WARPS  # of 16 bytes, of each thread: of words, and half a key
    for name, (ptx, use) in code.items():
        assert "STACK:0 " in use
        assert "LOCAL:0 " in use
        assert ptx.count("ld.global.v4.b32") == (2 * loads if name.startswith("1 ") else 3 * loads)
