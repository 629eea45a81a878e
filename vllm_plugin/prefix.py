"""How much of their prompts requests found computed already, by how long these are and what else a step computed. Pure.

A request counts once, in the step that admits it first: not again when it was preempted, or is computed anew.

    asked   the tokens that it came with
    hit     those of them that are not computed, as their pages were here, or came from the page store; never all, as
            the last one is always computed
    input   how long that is: INPUTS
    batch   what else that step computes: "alone" nothing; "decode" requests each of which computes the one token it
            was given last; "prefill" requests that compute more than that, of their prompts, or of what they had before
            they were preempted; "mixed" both
"""

from collections.abc import Callable, Sequence

from vllm_plugin.schedule import Request, Scheduled

PREFIX = "prefix"  # prefix.WHAT.INPUT.BATCH
ASKED, HIT = "asked", "hit"
INPUTS = ((256, "<=256"), (1024, "<=1k"), (4096, "<=4k"), (16384, "<=16k"))  # tokens, and their name
LONGER = ">16k"


class Prefixes:
    """count: told (name, how many), for metrics."""

    def __init__(self, count: Callable[[str, float], None]) -> None:
        self._count = count
        self._counted: set[str] = set()

    def step(self, scheduled: Sequence[Scheduled]) -> None:
        """These are computed together, and nothing of it was yet. Most steps admit nobody, and cost a look at each."""
        new = [one for one in scheduled if one.fresh and one.request.request_id not in self._counted]
        if not new:
            return
        decoding = sum(map(_decodes, scheduled))
        for one in new:
            request = one.request
            self._counted.add(request.request_id)
            others = decoding - _decodes(one), len(scheduled) - decoding - (not _decodes(one))
            labels = f"{_length(request)}.{_batch(*others)}"
            self._count(f"{PREFIX}.{ASKED}.{labels}", request.num_tokens)
            self._count(f"{PREFIX}.{HIT}.{labels}", request.num_computed_tokens)

    def finished(self, request_id: str) -> None:
        """It is no more; another one may have its name."""
        self._counted.discard(request_id)


def _decodes(one: Scheduled) -> bool:
    return one.request.num_tokens - one.request.num_computed_tokens <= 1


def _length(request: Request) -> str:
    return next((name for most, name in INPUTS if request.num_tokens <= most), LONGER)


def _batch(decoding: int, prefilling: int) -> str:
    if decoding and prefilling:
        return "mixed"
    return "decode" if decoding else "prefill" if prefilling else "alone"
