"""How many tokens a request will take: a bound for its prompt, a guess for its answer. Pure."""

from bisect import insort
from collections import deque

LENGTHS_KEPT = 128  # past answers per model and prompt size
BUCKETS = 32  # prompt sizes, by powers of two
TOKENS_GUESS = 256  # for the answer, while nothing is known
PER_MESSAGE = 64  # tokens a chat template may put around one message
PER_PROMPT = 1024  # and around the whole: a default system prompt, tool instructions, dates


def prompt_bound(body_bytes: int, messages: int, prompts: int) -> int:
    """A cheap bound for the prompt's tokens: every token of a client's text takes a byte of the request.

    Templates add text of their own, so a margin is added; the bound is a working assumption, not a
    proof. What is delivered is always checked against the prompt's real ids first.
    """
    return body_bytes + PER_MESSAGE * messages + PER_PROMPT * prompts


class AnswerLengths:
    """Quantiles of past answers' lengths, per model and size of prompt; so many values kept and no more."""

    def __init__(self, models_max: int = 256) -> None:
        self._models_max = models_max
        self._kept: dict[tuple[str, int], tuple[deque[int], list[int]]] = {}

    def q90(self, model: str, prompt_tokens: int) -> int:
        """The length that nine of ten answers to such prompts stayed within, in tokens."""
        kept = self._kept.get((model, _bucket(prompt_tokens)))
        if kept is None or len(kept[1]) < 10:
            return TOKENS_GUESS
        return kept[1][int(0.9 * len(kept[1]))]

    def note(self, model: str, prompt_tokens: int, answer_tokens: int) -> None:
        """Learn from a finished answer."""
        key = (model, _bucket(prompt_tokens))
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= self._models_max * BUCKETS:
                return
            kept = self._kept[key] = (deque(), [])
        order, ranked = kept
        order.append(answer_tokens)
        insort(ranked, answer_tokens)
        if len(order) > LENGTHS_KEPT:
            ranked.remove(order.popleft())


def _bucket(tokens: int) -> int:
    return min(BUCKETS - 1, max(0, tokens).bit_length())
