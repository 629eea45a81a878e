"""What another server gave out, in the engine: output of this request from the start.

So all that vLLM derives from a request's output is as it would be: what is left of max_tokens, penalties, the hashes of
pages, with which pages beyond the prompt are found, and where the grammar is.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

from vllm_plugin.restore import IDS, KEY
from vllm_plugin.wrapping import wrap, wrap_class_method


def ids_of(sampling_params: Any) -> list[int]:
    """The tokens that were given out for it, as this server's own front says. Not what a client says: that is no
    dictionary, or the front has refused it.
    """
    said = (getattr(sampling_params, "extra_args", None) or {}).get(KEY)
    return said.get(IDS, []) if isinstance(said, dict) else []


def know_requests() -> None:
    """From now on, this engine's requests come with what was given out for them."""
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager

    wrap_class_method(Request, "from_engine_core_request", _request)
    wrap(StructuredOutputManager, "_create_grammar", _grammar)


def _request(original: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    request = original(*args, **kw)
    ids = ids_of(request.sampling_params)
    if ids:
        request.append_output_token_ids(list(ids))
        # What is found computed may be more than its prompt, which these statistics know nothing of.
        request.prefill_stats = None
    return request


def _grammar(original: Callable[..., Any], self: Any, request: Any) -> Any:
    """In the thread that compiles it. Raises ValueError, which fails this request only."""
    grammar = original(self, request)
    ids = ids_of(request.sampling_params)
    if ids:
        _take(self, request, grammar, ids)
    return grammar


def _take(manager: Any, request: Any, grammar: Any, ids: list[int]) -> None:
    """As in the engine that gave them out: one after the other, so that it knows again where reasoning ended."""
    mine = request.structured_output_request
    then = copy(request)  # as it was after each of them
    then.structured_output_request = state = copy(mine)
    then.all_token_ids = known = list(request.prompt_token_ids or ())
    state.grammar = grammar
    for token in ids:
        known.append(token)
        if not manager.accept_tokens(then, [token]):
            raise ValueError("the grammar does not take what was given out for this request")
    mine.reasoning_ended, mine.reasoner = state.reasoning_ended, state.reasoner
