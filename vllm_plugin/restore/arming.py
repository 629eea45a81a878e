"""What continuing requests takes in an engine's processes: put there at the start, if this vLLM has all of it."""

from collections.abc import Callable
from typing import Any, cast

from vllm_plugin import logs, versions
from vllm_plugin.restore import generators, history

MOVE = "_holdfast_move"  # of a runner: see `move_of`

log = logs.logger("arming")


def in_engine(wanted: bool, vocabulary: int, window: int) -> list[str]:
    """From now on, if it is wanted, this engine's requests may come with tokens that another server gave out for them.
    Returns what this vLLM lacks for that. vocabulary, window: of the model, as `history.know_requests` has them.
    """
    missing = _missing(versions.CONTINUED_IN_ENGINE)
    if wanted and not missing:
        history.know_requests(vocabulary, window)
    return missing


def in_worker(runner: Callable[[], Any]) -> list[str]:
    """The same of a worker's, whose runner is asked for when it is needed. Wanted or not: a seed and a long prompt do
    no harm on the CPU then.
    """
    missing = _missing(versions.CONTINUED_IN_WORKER)
    if not missing:
        generators.know_batches(lambda: move_of(runner()))
    return missing


def move_of(runner: Any) -> generators.Move | None:
    """How what its seeded requests draw from is moved on; None where that cannot be told."""
    if not hasattr(runner, MOVE):
        sampler = getattr(getattr(runner, "sampler", None), "topk_topp_sampler", None)
        vocabulary = runner.input_batch.vocab_size
        setattr(runner, MOVE, generators.move_of(sampler, vocabulary, runner.device) if sampler else None)
    return cast("generators.Move | None", getattr(runner, MOVE))


def _missing(hooks: versions.Hooks) -> list[str]:
    missing = versions.missing_of(hooks)
    if missing:
        log.warning("holdfast.not_continuing", why=f"this vLLM has no {', '.join(missing)}")
    return missing
