"""How much of a continued request's prompt was found computed, in vLLM's own words: usage's `cached_tokens`.

vLLM takes what it finds for a part of the prompt, and asserts that; of a continued request also pages of its answer are
found. So it is told by whoever looks (the connector), and vLLM takes it only where it hands it on.
"""

from typing import Any


def stats() -> Any:
    """Statistics that vLLM does not fill itself: they are false. None where this vLLM has none."""
    try:
        from vllm.v1.metrics.stats import PrefillStats
    except ImportError:  # another version
        return None

    class Found(PrefillStats):
        """told: the prompt's tokens, and those that were there, pages of the answer too."""

        def told(self, prompt_tokens: int, tokens: int) -> None:
            cached = min(tokens, prompt_tokens)
            self.num_prompt_tokens, self.num_cached_tokens = prompt_tokens, cached
            self.num_computed_tokens = prompt_tokens - cached

        def __bool__(self) -> bool:
            return False

    return Found()


def tell(request: Any, tokens: int) -> None:
    """So many tokens of a request are there, or will be loaded; told again, the last time counts."""
    told = getattr(getattr(request, "prefill_stats", None), "told", None)
    if told is not None:
        told(request.num_prompt_tokens, tokens)
