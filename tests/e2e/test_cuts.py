"""Streams from real vLLM, cut at seeded points by a proxy: the client must not be able to tell."""

import aiohttp
import pytest
from tokenizers import Tokenizer

from loadtests.cutting_proxy import Cut
from tests.answers import Answer, ask
from tests.conftest import Server
from tests.e2e.conftest import Proxy
from tests.e2e.cuts import run_cuts, seeded_plan
from tests.e2e.requests import byte_soup, chat, emoji
from tests.processes import Gateway

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TOKENS = 40
AT_ONCE = 16  # a server takes little longer for a step of as many
CUTS = 300
ROUNDS_MAX = 66  # of 15 streams; one that is whole before its cut (vLLM put many tokens in one event) is no cut


async def test_300_cut_streams_equal_their_uninterrupted_runs(
    gateway: Gateway, key: str, proxy: Proxy, engines: tuple[Server, Server]
) -> None:
    """Ids, text, ends and usage of greedy streams, 16 at once, cut 300 times in all, are those of uncut ones."""
    before = proxy.cuts
    proxy.plan(seeded_plan(seed=2026, tokens=TOKENS))
    bodies = [
        chat(f"Write {count} lines about {topic}.", max_tokens=TOKENS, ignore_eos=True, repetition_penalty=penalty)
        for count, topic in enumerate(("sockets", "regular expressions", "the calendar", "decimal numbers", "mail"))
        for penalty in (1.0, 1.1, 1.3)
    ]

    def enough() -> bool:
        return proxy.cuts - before >= CUTS

    url = engines[1].url
    tally = await run_cuts(url, gateway.url, bodies, ROUNDS_MAX, key=key, at_once=AT_ONCE, enough=enough)

    assert tally.differing == []
    assert tally.equal == tally.streams >= CUTS
    assert proxy.cuts - before >= CUTS
    # A reset may also destroy what was sent before it: then nothing was delivered yet.
    assert tally.cut > CUTS / 3


FEATURES = {
    "emoji, frequency_penalty, logit_bias": lambda t: emoji(t, "smile", 48),
    "bytes that are no UTF-8": lambda t: byte_soup(t, "bytes", 48),
    "frequency_penalty": lambda t: chat("count", max_tokens=48, frequency_penalty=1.5),
    "repetition_penalty": lambda t: chat("count", max_tokens=48, repetition_penalty=1.4),
    "logit_bias": lambda t: chat("count", max_tokens=48, logit_bias={"300": 1.5, "301": 1.4}),
    "min_tokens, then end of text": lambda t: chat("end", max_tokens=48, min_tokens=40, logit_bias={"1": 100}),
    "stop_token_ids": lambda t: chat("count", max_tokens=48, stop_token_ids=[t.token_to_id("Ġalign")]),
    "allowed_token_ids": lambda t: chat(
        "count", max_tokens=48, allowed_token_ids=list(range(300, 500)), repetition_penalty=1.2
    ),
    "special tokens in the text": lambda t: chat(
        "count", max_tokens=48, skip_special_tokens=False, ignore_eos=True, logit_bias={"1": 8.0}, frequency_penalty=1.0
    ),
}


@pytest.mark.parametrize("feature", FEATURES)
async def test_a_feature_goes_on_exactly(
    feature: str, gateway: Gateway, key: str, proxy: Proxy, engines: tuple[Server, Server], tokenizer: Tokenizer
) -> None:
    """Every 2nd token of an answer is a place to cut it; each time the feature goes on as if nothing had been."""
    cuts = iter(range(1, 48, 2))
    # By turns: on a starved machine a reset destroys what was sent before it, and a stream without a token is no cut.
    proxy.plan(lambda number, request: Cut(next(cuts), how=("rst", "fin")[number % 2]))

    tally = await run_cuts(engines[1].url, gateway.url, [FEATURES[feature](tokenizer)], 24, key=key, at_once=AT_ONCE)

    assert tally.differing == []
    assert tally.equal == 24
    assert tally.cut > 0


@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_string_is_found_across_the_cut(
    include: bool, gateway: Gateway, key: str, proxy: Proxy, engines: tuple[Server, Server]
) -> None:
    """A stop string whose beginning came from one server and whose end comes from another still stops."""
    plain = chat("Write a poem.", max_tokens=48, repetition_penalty=1.3)
    whole = await _answer(engines[1].url, plain)
    start = len(whole.text[0]) // 2
    stop = [whole.text[0][start : start + 30], "never said", "\n\n\n\n"]
    cuts = iter(range(1, 60))
    proxy.plan(lambda number, request: Cut(next(cuts)))

    body = plain | {"stop": stop, "include_stop_str_in_output": include}
    tally = await run_cuts(engines[1].url, gateway.url, [body], 40, key=key, at_once=AT_ONCE)

    assert tally.differing == []
    assert tally.cut >= 3


async def test_completions_and_arrays_of_prompts_go_on_exactly(
    gateway: Gateway, key: str, proxy: Proxy, engines: tuple[Server, Server]
) -> None:
    """Each choice of /v1/completions over three prompts goes on from its own ids."""
    before = proxy.cuts
    proxy.plan(seeded_plan(seed=5, tokens=80))
    body = {"model": "tiny", "temperature": 0, "stream": True, "max_tokens": 32, "repetition_penalty": 1.3}
    body |= {"prompt": ["def main():", "import ", "class Node"]}

    tally = await run_cuts(engines[1].url, gateway.url, [body], 24, path="/v1/completions", key=key)

    assert tally.differing == []
    assert proxy.cuts - before >= 3
    assert tally.cut >= 1


async def test_without_a_tokenizer_the_text_comes_from_the_standby(
    discovering: Gateway, proxy: Proxy, engines: tuple[Server, Server], tokenizer: Tokenizer
) -> None:
    """With nothing but two addresses, cut streams (emoji among them) still equal the uninterrupted ones."""
    before = proxy.cuts
    proxy.plan(seeded_plan(seed=11, tokens=40))
    smiling = emoji(tokenizer, "smile", 120)
    del smiling["ignore_eos"]
    bodies = [chat("Explain.", max_tokens=120, repetition_penalty=1.2), smiling]

    tally = await run_cuts(engines[1].url, discovering.url, bodies, 8)

    assert tally.differing == []
    assert proxy.cuts - before >= 3
    assert tally.cut >= 1


async def _answer(url: str, body: dict[str, object]) -> Answer:
    async with aiohttp.ClientSession() as session:
        return await ask(session, url, body)
