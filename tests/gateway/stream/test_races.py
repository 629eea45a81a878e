"""Races whose second leg is prepared while tokens may still come. What happens to them then is in test_flow."""

import asyncio
from collections.abc import Sequence

import pytest

from gateway.stream.text import RemoteDecoder, TextLost
from loadtests.stub_tokenizer import decode_bytes
from tests.gateway.stage import Stage
from tests.gateway.stream.fakes import Engine, call_for, ids_of, terms_for, text_of
from tests.gateway.stream.vllm_text import VOCAB

ANSWER = ids_of("first ü 🦀, and on")


class Detokenizer:
    """A server's /detokenize that answers when it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.asked = 0
        self.broken = False

    async def __call__(self, ids: Sequence[int]) -> str:
        self.asked += 1
        await self.let.wait()
        if self.broken:
            raise TextLost("a test")
        return decode_bytes(ids, VOCAB).decode("utf-8", "replace")


def stage_with(detokenizer: Detokenizer) -> Stage:
    call = call_for(return_token_ids=True)
    terms = terms_for(call, decoder=lambda: RemoteDecoder(detokenizer), spells_special=True)
    return Stage(call, Engine([ANSWER]), terms=terms)


@pytest.mark.parametrize("cut", range(2, len(ANSWER)))
@pytest.mark.parametrize("tokens", [0, 1, 3])
async def test_tokens_that_come_while_a_race_is_prepared_call_it_off(tokens, cut):
    """A second leg's words would lack them, also where they are but a part of a character; else the race is run."""
    detokenizer = Detokenizer()
    stage = stage_with(detokenizer)
    first = await stage.opened(0)
    first.bring(cut)
    await stage.silent(first)
    waiting = (detokenizer.asked, len(stage.legs))

    first.bring(tokens)
    detokenizer.let.set()
    await stage.turn()

    assert waiting == (1, 1)
    assert len(stage.legs) == (1 if tokens else 2)
    stage.legs[-1].finish()
    await stage.end()
    assert stage.seen.ids[0] == ANSWER
    assert stage.seen.text[0] == text_of(ANSWER)


async def test_a_race_whose_text_cannot_be_made_is_not_run():
    """The silent leg may still go on; that its stream could not go on elsewhere harms it only if it is lost."""
    detokenizer = Detokenizer()
    detokenizer.broken = True
    detokenizer.let.set()
    stage = stage_with(detokenizer)
    first = await stage.opened(0)
    first.bring(5)
    await stage.silent(first)

    assert (len(stage.legs), detokenizer.asked > 0) == (1, True)
    first.finish()
    await stage.end()
    assert stage.seen.ids[0] == ANSWER
