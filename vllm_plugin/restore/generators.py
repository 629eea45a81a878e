"""What seeded requests draw from, in a worker of vLLM's V1 runner: put where it was before a server was lost.

The sampler draws once for each token. What a draw takes differs by device and version; so it is looked at: one is made,
and seen how far a generator is then. Where that cannot be told, seeds are not continued.
"""

from collections.abc import Callable
from typing import Any

import torch

from vllm_plugin.restore.history import ids_of
from vllm_plugin.wrapping import wrap

Move = Callable[[torch.Generator, int], object]  # on by so many draws


class CpuGenerator(torch.Generator):
    """One that vLLM can have a draw taken back from.

    The V1 runner does so with every part of a prompt but the last, by `set_offset`, which generators on the CPU refuse:
    a seed and a prompt longer than one step would end the engine.
    """

    before: torch.Tensor

    @classmethod
    def of(cls, other: torch.Generator) -> "CpuGenerator":
        """One that draws what the other would."""
        made = cls()
        made.before = other.get_state()
        made.set_state(made.before)
        return made

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> torch.Generator:
        """vLLM only ever takes the last draw back."""
        return self.set_state(self.before)


def remembered(generator: torch.Generator) -> torch.Tensor:
    """Its state, before it is drawn from."""
    state = generator.get_state()
    if isinstance(generator, CpuGenerator):
        generator.before = state
    return state


def know_batches(move_of: Callable[[], Move | None]) -> None:
    """From now on, requests that a worker hears of have the tokens that were given out for them elsewhere, and draw on
    from behind those. move_of: asked when it is needed.
    """
    from vllm.v1.worker.gpu_input_batch import InputBatch

    def add_request(original: Callable[..., Any], self: Any, request: Any, *args: Any, **kw: Any) -> Any:
        ids = ids_of(request.sampling_params)
        if request.output_token_ids:  # it had to make room, and is here again with all that it has
            ids = []
        request.output_token_ids.extend(ids)
        generator = request.generator
        if generator is not None:
            if generator.device.type == "cpu" and not isinstance(generator, CpuGenerator):
                generator = request.generator = CpuGenerator.of(generator)
            move = move_of() if ids else None
            if move is not None:
                move(generator, len(ids))
        return original(self, request, *args, **kw)

    wrap(InputBatch, "add_request", add_request)


def move_of(sampler: Callable[..., Any], vocabulary: int, device: torch.device) -> Move | None:
    """How a generator is moved on; None where that cannot be told. sampler: vLLM's, of logits and generators."""
    generator = torch.Generator(device=device)
    generator.manual_seed(1)
    fresh = generator.get_state()
    before = None if device.type == "cpu" else generator.get_offset()
    sampler(torch.zeros(1, vocabulary, device=device), {0: generator}, None, None)
    if before is not None:
        step = generator.get_offset() - before
        return (lambda one, draws: one.set_offset(one.get_offset() + draws * step)) if step > 0 else None
    after = generator.get_state()
    for draw in _draws(vocabulary):
        generator.set_state(fresh)
        draw(generator)
        if torch.equal(generator.get_state(), after):
            return _repeated(draw)
    return None


def _draws(vocabulary: int) -> list[Callable[[torch.Generator], object]]:
    """What vLLM's samplers on the CPU were seen to do for one token: since 0.32, and before."""
    return [
        lambda one: torch.randint(0, 2**31, (1,), generator=one, dtype=torch.long),
        lambda one: torch.empty(vocabulary, dtype=torch.float32).exponential_(generator=one),
        lambda one: torch.empty(vocabulary, dtype=torch.float64).exponential_(generator=one),
    ]


def _repeated(draw: Callable[[torch.Generator], object]) -> Move:
    def move(generator: torch.Generator, draws: int) -> None:
        for _ in range(draws):
            draw(generator)

    return move
