"""What another server gave out, in the engine: output of this request from the start.

So all that vLLM derives from a request's output is as it would be: what is left of max_tokens, penalties, the hashes of
pages, with which pages beyond the prompt are found, and where the grammar is.
"""

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

from vllm_plugin.restore import IDS, KEY
from vllm_plugin.wrapping import wrap, wrap_class_method


def ids_of(sampling_params: Any) -> list[int]:
    """The tokens that were given out for it, as this server's own front says. Not what a client says: that is no
    dictionary, or the front has refused it.
    """
    said = (getattr(sampling_params, "extra_args", None) or {}).get(KEY)
    return said.get(IDS, []) if isinstance(said, dict) else []


def known_ids(sampling_params: Any, vocabulary: int, room: int) -> list[int]:
    """The same, looked at: a front other than this server's may have let them in, and what an engine computes from an
    id that the model has not is undefined, up to its end.

    room: tokens that the model's window has left behind the prompt. Raises ValueError, which fails this request only.
    """
    ids = ids_of(sampling_params)
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < vocabulary for one in ids):
        raise ValueError(f"what was given out for this request is not all tokens of a vocabulary of {vocabulary}")
    if ids and len(ids) >= min(room, sampling_params.max_tokens or room):
        raise ValueError(f"{len(ids)} tokens were given out for this request: none is left of what it may have")
    return ids


def know_requests(vocabulary: int, window: int) -> None:
    """From now on, this engine's requests come with what was given out for them.

    vocabulary, window: how many tokens the model has, and how many of them a request has at most.
    """
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager

    wrap_class_method(Request, "from_engine_core_request", partial(_request, vocabulary, window))
    wrap(StructuredOutputManager, "_create_grammar", _grammar)


def _request(vocabulary: int, window: int, original: Callable[..., Any], *args: Any, **kw: Any) -> Any:
    request = original(*args, **kw)
    ids = known_ids(request.sampling_params, vocabulary, window - request.num_tokens)
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
