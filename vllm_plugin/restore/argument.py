"""What a gateway says of the tokens that a lost server gave out: the text in `vllm_xargs.holdfast_resume`. Pure.

    [[[5, 7], [9]], []]   JSON: of each choice its chunks, of each chunk the ids that one event of that server brought

A token id that the model has not kills vLLM's engine, so that the text is read here, in full, before anything else is.
"""

from collections.abc import Sequence

import msgspec

ID_CHARS_MAX = 24  # of the text for one token: its digits, what stands between two, and some spaces

Chunks = list[list[int]]
_decoder = msgspec.json.Decoder(list[Chunks])


class ArgumentRefused(ValueError):
    """Not what a gateway would send; says why. No token of it is repeated."""


def read(said: object, *, choices: int, tokens_max: int, vocabulary: int) -> list[Chunks]:
    """The chunks of each choice, those that are empty left out.

    choices: how many the request has. tokens_max: how many tokens one of them may have. vocabulary: how many token ids
    there are. Raises ArgumentRefused.
    """
    if not isinstance(said, str):
        raise ArgumentRefused("a JSON text is expected: of each choice its chunks, of each chunk its token ids")
    chars_max = ID_CHARS_MAX * choices * (tokens_max + 1)
    if len(said) > chars_max:
        raise ArgumentRefused(f"it has {len(said)} characters, and the tokens of this request at most {chars_max}")
    try:
        found = _decoder.decode(said)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArgumentRefused(f"a list of chunks of token ids is expected for each choice: {error}") from None
    if len(found) != choices:
        raise ArgumentRefused(f"it is of {len(found)} choices, and the request has {choices}")
    for number, chunks in enumerate(found):
        _check(chunks, number, tokens_max, vocabulary)
    return [[chunk for chunk in chunks if chunk] for chunks in found]


def _check(chunks: Sequence[Sequence[int]], choice: int, tokens_max: int, vocabulary: int) -> None:
    tokens = sum(map(len, chunks))
    if tokens > tokens_max:
        raise ArgumentRefused(f"choice {choice} has {tokens} tokens, and may have {tokens_max} at most")
    if any(not 0 <= token < vocabulary for chunk in chunks for token in chunk):
        raise ArgumentRefused(f"choice {choice} has a token id that the model has not: there are {vocabulary}")
