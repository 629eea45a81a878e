"""Of what weights are read, and that no bit of them can change unseen."""

import gc
import subprocess
import sys
import tracemalloc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.vllm_plugin import tensors
from tests.vllm_plugin.models import SLICE_BYTES, Model, bits, flip, read
from vllm_plugin.fingerprint import Reading, WeightsRefused, weights_of
from vllm_plugin.fingerprint.contents import TILE_BYTES, Plain, slice_sums, slices
from vllm_plugin.fingerprint.reading import tile_sums

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.int8, torch.int64, torch.bool]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5001), (16384,), (2, 3, 4097), (1,)], ids=str)
def test_sums_are_those_of_the_bytes_in_logical_order(dtype, shape):
    """As they are defined, in Python's own whole numbers; also of one that lies otherwise, or where no word begins."""
    tensor = bits(*shape, dtype=dtype)
    raw = tensors.raw(tensor)
    expected = tensors.tile_sums(raw + bytes(-len(raw) % 4))
    turned = tensor.permute(*reversed(range(tensor.dim()))).contiguous().permute(*reversed(range(tensor.dim())))
    shifted = torch.zeros(tensor.numel() + 3, dtype=dtype)[1 : tensor.numel() + 1].view(shape).copy_(tensor)

    for one in (tensor, turned, shifted):
        for slice_bytes in (TILE_BYTES, 2 * TILE_BYTES, 4 << 20):
            assert tile_sums(Plain(one), slice_bytes).tolist() == expected
        assert Plain(one).form == Plain(tensor).form


def test_every_slice_of_a_strided_tensor_is_its_bytes():
    """Cut wherever a tile may end: in the middle of rows, and of rows of rows."""
    tensor = bits(6, 50, 130, dtype=torch.bfloat16).permute(2, 0, 1)[1:, ::2]
    raw, contents = tensors.raw(tensor), Plain(tensor)

    for first, end in slices(contents, TILE_BYTES):
        assert bytes(contents.cut(first, end).numpy().tobytes()) == raw[first:end]
    assert slices(contents, TILE_BYTES)[-1][1] == len(raw)


def test_one_wrong_bit_of_any_weight_is_found(model):
    """Of every weight and buffer: its first, its last and some more bits; all others keep their sums."""
    right = read(model)
    rng = np.random.default_rng(3)
    by_name = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert len(by_name) == 12
    for name, tensor in by_name.items():
        if not tensor.numel():
            continue
        width = 1 if tensor.dtype is torch.bool else 8 * tensor.element_size()
        for at, bit in [
            (0, 0),
            (-1, width - 1),
            *((rng.integers(tensor.numel()), rng.integers(width)) for _ in range(8)),
        ]:
            flip(tensor, int(at) % tensor.numel(), int(bit))
            changed = read(model)
            flip(tensor, int(at) % tensor.numel(), int(bit))

            names = {name, "lm_head.weight"} if name == "layers.embed.weight" else {name}
            assert set(right.differs(changed)) == names
            assert changed.digest != right.digest
    assert read(model).digest == right.digest


def test_a_changed_scale_of_the_cache_is_found(model):
    """Also where it is a number, or a tensor that is neither parameter nor buffer: kernels take those."""
    right = read(model)
    for name, value in (("_k_scale_float", 0.75), ("_v_scale_cpu", torch.tensor(0.5))):
        before = getattr(model.attention, name)
        setattr(model.attention, name, value)
        assert right.differs(read(model)) == [f"attention.{name}"]
        setattr(model.attention, name, before)


def test_what_a_step_writes_is_no_weight(model):
    """The pages themselves hang on layers, as attributes."""
    right = read(model)
    model.attention.kv_cache += 1

    assert read(model).digest == right.digest


def test_the_same_weights_elsewhere_and_in_another_order_are_the_same(model):
    """Other memory, modules made in another order, all strided ones contiguous, tied ones untied, other slices."""
    right = read(model).digest
    other = Model(order=-1)
    for module in other.layers.values():
        module.weight = nn.Parameter(module.weight.detach().clone().contiguous(), requires_grad=False)
    untied = nn.Parameter(other.lm_head.weight.detach().clone(), requires_grad=False)
    other.lm_head.weight = untied

    assert read(other).digest == right
    assert Reading.of(weights_of({"": model})).digest == right


def test_another_process_finds_the_same():
    """Nothing of it is of this process: no address, no order of hashes."""
    code = "from tests.vllm_plugin.models import *; print(read(Model()).digest.hex(), fingerprint(1, 2).shard.hex())"
    found = {
        subprocess.check_output(
            [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    }

    assert len(found) == 1
    assert found.pop().decode().split()[0] == read(Model()).digest.hex()


def renamed(model: Model) -> None:
    model.layers["renamed"] = model.layers["packed"]
    del model.layers["packed"]


def swapped(model: Model) -> None:
    one, other = model.layers["same_form_1"], model.layers["same_form_2"]
    one.weight, other.weight = other.weight, one.weight


def replaced(name: str, change):
    def do(model: Model) -> None:
        model.layers[name].weight = nn.Parameter(change(model.weight(name).detach()), requires_grad=False)

    return do


@pytest.mark.parametrize(
    "change",
    [
        renamed, swapped, replaced("same_form_1", torch.t), replaced("float8", torch.t),
        replaced("same_form_1", lambda weight: weight.view(torch.float16)),
        replaced("packed", lambda weight: weight.view(torch.uint32)),
        replaced("same_form_1", lambda weight: weight.reshape(32, 128)),
        replaced("same_form_1", lambda weight: weight[:-1]),
        replaced("odd", lambda weight: torch.cat([weight, torch.zeros(1, 2341, dtype=torch.uint8)])),
        replaced("empty", lambda weight: torch.zeros(0, 9)),
        lambda model: delattr(model, "mask"), lambda model: model.register_buffer("mask_2", torch.zeros(1)),
        lambda model: model.layers["scale"].weight.data.copy_(torch.tensor(2.0)),
    ],
)  # fmt: skip
def test_other_weights_are_others(change, model):
    """Renamed, swapped, transposed, re-typed, re-shaped, cut, longer by zeros, gone, new, written to `.data`."""
    right = read(model)
    change(model)

    assert read(model).digest != right.digest
    assert right.differs(read(model))


def test_two_models_have_names_apart(model):
    """A draft's weights are not the model's own, though they are called the same."""
    drafts = [nn.Linear(2, 2), nn.Linear(2, 2)]
    both = [Reading.of(weights_of({"": model, "draft.": draft})) for draft in drafts]

    assert both[0].digest != both[1].digest
    assert both[0].differs(both[1]) == ["draft.bias", "draft.weight"]


def test_tied_weights_are_read_once(model):
    """They are of both names, and cost once."""
    size = sum(t.numel() * t.element_size() for t in {*model.parameters(), *model.buffers()})

    assert read(model).read_bytes == size + 8 + 4  # the scales
    assert read(model).forms["lm_head.weight"] == "bfloat16 (96, 64)"


def test_no_weight_is_copied_as_a_whole():
    """Not even one that is not contiguous, of 64 MB: what is made is of a slice's size, and given back."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(4096, 4096).t(), requires_grad=False)
    seen: list[int] = []
    weights = weights_of({"": model})
    contents = weights["weight"].contents()
    for first, end in slices(contents, 1 << 20)[:3]:
        cut = contents.cut(first, end)
        seen.append(cut.untyped_storage().nbytes())
    tracemalloc.start()
    Reading.of(weights, 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert seen == [1 << 20] * 3
    assert peak < 2 << 20
    assert Plain(torch.zeros(4096, 4096)).cut(0, 4096).untyped_storage().nbytes() == 64 << 20  # not copied at all


def test_a_reading_and_its_weights_hold_no_tensor(model):
    """What was replaced can go, though both are kept."""
    reading, weights = read(model), weights_of({"": model})
    gone = weakref.ref(model.weight("packed"))
    model.layers["packed"].weight = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    gc.collect()

    assert gone() is None
    assert reading.differs(read(model)) == ["layers.packed.weight"]
    assert weights["layers.packed.weight"].contents().form == "float32 (2, 2)"


class Handle:
    """A weight that its kernel keeps where nobody sees it, as oneDNN does."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.n, self.k = weight.shape
        self.kept = weight


def taken(weight: torch.Tensor, visible: bool) -> nn.Module:
    """A layer whose weight was taken by a function: as a tensor that it holds, or behind a handle."""
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.empty(0, dtype=weight.dtype), requires_grad=False)
    handler, packed_weight = Handle(weight), weight
    if visible:
        layer.cpu_linear = lambda x, weight, bias: nn.functional.linear(x, packed_weight, bias)
    else:
        layer.cpu_linear = lambda x, weight, bias: nn.functional.linear(x, vars(handler)["kept"], bias)
    return layer


@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_its_kernel_took_is_read_through_it(dtype, visible):
    """Else nothing would be seen of it: on the CPU vLLM leaves an empty parameter. Also in several slices."""
    weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(1)).to(dtype)
    right = read(taken(weight, visible))
    for at, bit in ((0, 0), (5000, 3), (96 * 160 - 1, 6)):
        wrong = weight.clone()
        flip(wrong, at, bit)

        changed = read(taken(wrong, visible))

        assert right.differs(changed) == ["cpu_linear.packed_weight" if visible else "cpu_linear.handler"]
    assert read(taken(weight.clone(), visible)).digest == right.digest
    (sums,) = (right.sums[name] for name in right.sums if name != "weight")
    assert sums.tolist() == tensors.tile_sums(tensors.raw(weight if visible else weight.t()))


def test_covers_are_taken_apart():
    """Tensors that are made of others (torchao's, vLLM's shared ones) have no memory of their own to be read."""
    inner = {"qdata": bits(4, 8, dtype=torch.uint8), "scale": bits(4, dtype=torch.float32)}
    cover = SimpleNamespace(**inner, __tensor_flatten__=lambda: (["qdata", "scale"], None))
    model = nn.Module()
    model._parameters["weight"] = cover
    model._parameters["shared"] = SimpleNamespace(partitions={0: inner["qdata"]})

    assert sorted(read(model).forms) == ["shared.0", "weight.qdata", "weight.scale"]


def test_what_cannot_be_read_is_refused():
    """Weights that are nowhere, or none: never a fingerprint of nothing."""
    nowhere = nn.Linear(2, 2, device="meta")
    for model in (nowhere, nn.Module()):
        with pytest.raises(WeightsRefused):
            read(model)


def test_slices_are_of_whole_tiles():
    """Else sums would depend on their size."""
    with pytest.raises(AssertionError):
        slices(Plain(torch.zeros(8)), SLICE_BYTES + 4)
    assert slice_sums(Plain(torch.zeros(8)), 0, 32).tolist() == [0]
