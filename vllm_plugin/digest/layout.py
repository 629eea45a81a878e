"""Which axis of a cache tensor is what. Pure.

    "block head kv token dim"    vLLM 0.32 on the CPU, as compat.py sees it: a head's keys, and then its values
    "block head token kv.dim"    K and V are the halves of the last axis: vLLM 0.32 elsewhere
    "kv block head token dim"    vLLM 0.20 on the CPU
    "kv block token head dim"    FlashAttention
    "block kv token head dim"    FlashInfer, and FlashAttention since
    "block token dim"            MLA, which keeps no V
    "block ..."                  states: opaque, their other axes as they come

An axis may be named twice, outer first: where the attention kernel's blocks are smaller than the page's, so that a page
is many of them, say "block token head token kv.dim" of a tensor whose first axis was unflattened.
"""

from collections.abc import Sequence
from typing import NamedTuple

LOGICAL = ("kv", "token", "head", "dim")  # the order in which words are counted
NAMES = ("block", *LOGICAL)
REST = "..."


class LayoutRefused(ValueError):
    """A tensor that these words do not fit, or whose blocks are not whole 32-bit words; says which."""


class Axis(NamedTuple):
    """One axis. stride: from one element to the next, in bytes."""

    name: str
    size: int
    stride: int


class Block(NamedTuple):
    """The blocks of a tensor. axes: of one block, in logical order."""

    blocks: int
    stride: int
    axes: list[Axis]


def read(layout: str, shape: Sequence[int], strides: Sequence[int]) -> Block:
    """What the blocks of a tensor are, whose layout is told in words. strides: in bytes, of the tensor's own axes.

    Raises LayoutRefused.
    """
    axes = [axis for word in _words(layout, len(shape), shape, strides) for axis in word]
    if [axis.name for axis in axes].count("block") != 1:
        raise LayoutRefused(f"«{layout}» must name the block's axis, once")
    (block,) = (axis for axis in axes if axis.name == "block")
    rest = [axis for axis in axes if axis.name != "block"]
    if REST not in layout:
        rest.sort(key=lambda axis: LOGICAL.index(axis.name))
    return Block(block.size, block.stride, rest)


def form(axes: Sequence[Axis]) -> str:
    """The sizes of a block, in logical order: alike for all layouts of the same thing."""
    sizes: dict[str, int] = {}
    for axis in axes:
        sizes[axis.name] = sizes.get(axis.name, 1) * axis.size
    return " ".join(f"{name}{size}" for name, size in sizes.items())


def _words(layout: str, count: int, shape: Sequence[int], strides: Sequence[int]) -> list[list[Axis]]:
    """The axes that each word of the layout stands for: one, or the two that were made one."""
    words = layout.split()
    if words[-1:] == [REST]:
        words[-1:] = [f"axis{number}x" for number in range(count - len(words) + 1)]
    elif unknown := {name for word in words for name in word.split(".")} - set(NAMES):
        raise LayoutRefused(f"«{layout}» names {', '.join(sorted(unknown))}; it may name {', '.join(NAMES)}")
    if len(words) != count:
        raise LayoutRefused(f"«{layout}» is of {len(words)} axes, the tensor has {tuple(shape)}")
    return [_axes(*one) for one in zip(words, shape, strides, strict=True)]


def _axes(word: str, size: int, stride: int) -> list[Axis]:
    if "." not in word:
        return [Axis(word, size, stride)]
    outer, inner = word.split(".")
    if outer != "kv" or size % 2:
        raise LayoutRefused(f"«{word}» of {size}: only K and V may be an axis's halves")
    return [Axis(outer, 2, stride * (size // 2)), Axis(inner, size // 2, stride)]
