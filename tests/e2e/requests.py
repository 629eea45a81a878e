"""Requests whose answers must survive a cut exactly, written for the tiny model of `gateway.local`."""

from typing import Any

from tokenizers import Tokenizer

GREEDY = {"model": "tiny", "temperature": 0, "stream": True}


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    """A greedy streamed chat."""
    return GREEDY | {"messages": [{"role": "user", "content": prompt}]} | more


def emoji(tokenizer: Tokenizer, prompt: str, tokens: int) -> dict[str, Any]:
    """An answer made of nothing but emoji, each of them four tokens: three cuts of four split a character.

    The biases make the four tokens the likeliest by far, in this order; the frequency penalty moves each
    to the back of the queue when it was used. So this also needs the penalty to go on exactly.
    """
    ids = tokenizer.encode("\U0001f600").ids
    assert len(ids) == 4
    bias = {str(one): 100 - 0.5 * place for place, one in enumerate(ids)}
    return chat(prompt, max_tokens=tokens, logit_bias=bias, frequency_penalty=2.0, ignore_eos=True)


def byte_soup(tokenizer: Tokenizer, prompt: str, tokens: int) -> dict[str, Any]:
    """An answer of single bytes, most of them no valid UTF-8: what a decoder makes of it must not depend on cuts."""
    vocabulary = tokenizer.get_vocab()
    single = sorted(one for piece, one in vocabulary.items() if len(piece) == 1)
    return chat(prompt, max_tokens=tokens, allowed_token_ids=single, repetition_penalty=1.3, ignore_eos=True)
