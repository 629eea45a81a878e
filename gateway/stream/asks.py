"""What legs are asked for. Pure."""

from collections.abc import Sequence

from gateway.stream import continuation
from gateway.stream.call import Call, Endpoint
from gateway.stream.choice import Choice
from gateway.stream.seams import Ask, Terms
from gateway.stream.text import TextLost
from gateway.stream.wire import encode


def whole(call: Call, terms: Terms) -> Ask:
    """Ask for all of it, as the client did, with ids and, streamed, usage."""
    body = call.upstream_body(terms.max_tokens)
    if call.stream:
        body["stream_options"] = {"include_usage": True}
        if call.continuous_usage:
            body["stream_options"]["continuous_usage_stats"] = True
    likely = terms.prompt_likely + terms.answer_likely * call.choices
    return Ask(call.endpoint, encode(body), tuple(range(call.choices)), likely=likely)


def rest(call: Call, terms: Terms, choice: Choice, prompt: Sequence[int] | None) -> Ask:
    """Ask for what is missing of one choice; all of it where not even its prompt's ids were seen. Raises TextLost."""
    if prompt is None:
        asked = continuation.fresh(call, call.prompts[choice.prompt], terms.max_tokens)
    else:
        asked = continuation.body(call, prompt, choice.ids, length_max(terms, prompt))
    again = 0 if prompt is None else len(prompt) + len(choice.ids)
    likely = terms.prompt_likely // len(call.prompts) + terms.answer_likely
    return Ask(Endpoint.COMPLETIONS, encode(asked), (choice.index,), again, likely=likely)


def length_max(terms: Terms, prompt: Sequence[int] | None) -> int:
    """The most tokens an answer may have. Raises TextLost where nothing tells.

    Said explicitly to the next server: /v1/completions takes a missing max_tokens for 16, a null one too,
    while the chat that is continued had all of the model's window.
    """
    window, asked = terms.window(), terms.max_tokens
    bounds = [] if asked is None else [asked]
    if window is not None and prompt is not None:
        bounds.append(window - len(prompt))
    if not bounds:
        raise TextLost("how long it may become is not known")
    return min(bounds)
