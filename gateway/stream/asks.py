"""What legs are asked for. Pure."""

from collections.abc import Sequence
from typing import Any

from gateway.stream import continuation
from gateway.stream.call import Call, Endpoint
from gateway.stream.choice import Choice
from gateway.stream.seams import Ask, Terms
from gateway.stream.text import TextLost
from gateway.stream.wire import encode

RESUME = "holdfast_resume"  # in vllm_xargs: the ids of each choice, event by event, as JSON in a string


def whole(call: Call, terms: Terms, seed: int | None = None) -> Ask:
    """Ask for all of it, as the client did, with ids and, streamed, usage. seed: where the client gave none."""
    likely = terms.prompt_likely + terms.answer_likely * call.choices
    return Ask(call.endpoint, encode(_body(call, terms, seed)), tuple(range(call.choices)), likely=likely)


def replay(
    call: Call, terms: Terms, seed: int | None, choices: Sequence[Choice], prompt: Sequence[int] | None
) -> Ask:
    """Ask for all answers to one prompt again, as they were asked for first, with the ids that there are of each.

    choices: those answers. prompt: its ids, if they are known.
    """
    body = _body(call, terms, seed)
    if len(call.prompts) > 1:
        body["prompt"] = call.prompts[choices[0].prompt]
    said = encode([choice.chunks() for choice in choices]).decode()
    body["vllm_xargs"] = (call.body.get("vllm_xargs") or {}) | {RESUME: said}
    again = len(prompt or ()) + sum(len(choice.ids) for choice in choices if choice.finish_reason is None)
    likely = terms.prompt_likely // len(call.prompts) + terms.answer_likely * len(choices)
    numbers = tuple(choice.index for choice in choices)
    return Ask(call.endpoint, encode(body), numbers, again, likely=likely, replay=True)


def _body(call: Call, terms: Terms, seed: int | None) -> dict[str, Any]:
    body = call.upstream_body(terms.max_tokens)
    if seed is not None:
        body["seed"] = seed
    if call.stream:
        body["stream_options"] = {"include_usage": True}
        if call.continuous_usage:
            body["stream_options"]["continuous_usage_stats"] = True
    return body


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
