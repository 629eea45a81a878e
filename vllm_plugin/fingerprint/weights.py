"""Which tensors a model computes with, found again by name, without holding them."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from vllm_plugin.fingerprint.contents import Contents, Number, Packed, Plain

# Attributes of layers that are neither parameters nor buffers, and still change what is in a page: scales of the KV
# cache that kernels take from the host. All others are left out: layers keep there what a step writes, the pages
# themselves among it.
HOST_SCALES = frozenset({
    "_k_scale_cpu", "_v_scale_cpu", "_q_scale_float", "_k_scale_float", "_v_scale_float", "_prob_scale_float",
    "_o_scale_float",
})  # fmt: skip
# Functions that took a layer's weight with them, and left it empty: on the CPU.
KERNELS = ("cpu_linear",)


class WeightsRefused(ValueError):
    """A model whose contents cannot be read; says why."""


class Weight(NamedTuple):
    """Where a weight is found, now and later: what is there then may be another tensor.

    module: of which it is. find: from the module to what is there.
    """

    module: "weakref.ref[torch.nn.Module]"
    find: Callable[[torch.nn.Module], Any]

    def contents(self) -> Contents | None:
        """What is there now, read by nobody yet; None when there is nothing any more."""
        module = self.module()
        found = None if module is None else self.find(module)
        return None if found is None else _contents(found)


def weights_of(models: Mapping[str, torch.nn.Module]) -> dict[str, Weight]:
    """All weights and buffers of some models, by name: those of the draft model too, whose pages are in the cache.

    models: by the prefix of their names, say {"": model, "draft.": draft}. All names of a tied
    tensor are there. Raises WeightsRefused when there are none.
    """
    found = {}
    for prefix, model in models.items():
        for path, module in model.named_modules():
            for name, find in _of_module(module):
                found[f"{prefix}{path}.{name}" if path else f"{prefix}{name}"] = Weight(weakref.ref(module), find)
    if not found:
        raise WeightsRefused(f"{', '.join(type(model).__name__ for model in models.values())}: no weights at all")
    return dict(sorted(found.items()))


def _of_module(module: torch.nn.Module) -> Iterator[tuple[str, Callable[[torch.nn.Module], Any]]]:
    own = [(name, ("_parameters", name)) for name, value in module._parameters.items() if value is not None]
    own += [(name, ("_buffers", name)) for name, value in module._buffers.items() if value is not None]
    for name, (kind, key) in own:
        for path, _ in _inner(getattr(module, kind)[key]):
            yield ".".join([name, *path]), _finder(kind, key, path)
    for name in sorted(HOST_SCALES & vars(module).keys()):
        if isinstance(vars(module)[name], torch.Tensor | float | int):
            yield name, _attribute(name)
    for name in KERNELS:
        for variable, _ in _taken(module, name):
            yield f"{name}.{variable}", _kernel(name, variable)


def _inner(value: torch.Tensor, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """Tensors that are only a cover of others (torchao's, vLLM's shared ones), taken apart to those."""
    if hasattr(value, "partitions"):
        for key, inner in value.partitions.items():
            yield from _inner(inner, (*path, str(key)))
    elif hasattr(value, "__tensor_flatten__"):
        for key in value.__tensor_flatten__()[0]:
            yield from _inner(getattr(value, key), (*path, key))
    else:
        yield path, value


def _finder(kind: str, key: str, path: tuple[str, ...]) -> Callable[[torch.nn.Module], Any]:
    def find(module: torch.nn.Module) -> Any:
        value = getattr(module, kind).get(key)
        return None if value is None else dict(_inner(value)).get(path)

    return find


def _attribute(name: str) -> Callable[[torch.nn.Module], Any]:
    return lambda module: vars(module).get(name)


def _kernel(name: str, variable: str) -> Callable[[torch.nn.Module], Any]:
    return lambda module: dict(_taken(module, name)).get(variable)


def _taken(module: torch.nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    """What a kernel's function holds: rearranged weights, as tensors or behind a handle that knows its k and n."""
    kernel: Any = vars(module).get(name)
    cells = getattr(kernel, "__closure__", None) or ()
    for variable, cell in zip(kernel.__code__.co_freevars if cells else (), cells, strict=True):
        held = cell.cell_contents
        if isinstance(held, torch.Tensor):
            yield variable, held
        elif hasattr(held, "k") and hasattr(held, "n"):
            yield variable, _Asked(kernel, held.k, held.n, module)


class _Asked(NamedTuple):
    kernel: Any
    columns: int
    outputs: int
    module: torch.nn.Module


def _contents(found: Any) -> Contents:
    if isinstance(found, torch.Tensor):
        if found.is_meta or found.layout is not torch.strided:
            raise WeightsRefused(f"a tensor without contents that could be read: {found.layout} on {found.device}")
        return Plain(found)
    if isinstance(found, _Asked):
        weight = found.module.weight
        return Packed(lambda rows: found.kernel(rows, weight, None), found.columns, found.outputs, weight)
    return Number(float(found))
