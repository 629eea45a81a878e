"""Continuing requests, without an engine: the argument, what is refused, generators, and the canary."""

import asyncio
from types import SimpleNamespace

import pytest
import torch

from vllm_plugin.refusals import Facts
from vllm_plugin.restore import KEY, continuing
from vllm_plugin.restore.argument import ArgumentRefused, read
from vllm_plugin.restore.continuing import UNTRIED, Continuing
from vllm_plugin.restore.generators import CpuGenerator, move_of, remembered
from vllm_plugin.restore.history import ids_of, known_ids
from vllm_plugin.restore.limits import refused_field, why_not_here

SIZES = {"choices": 1, "tokens_max": 4, "vocabulary": 100}
SAID = {"continues_not": "", "seeds": True}


def test_an_argument_is_read_as_chunks_of_each_choice():
    """Those that are empty are left out; a choice may have none."""
    assert read("[[[5, 7], [], [99]], []]", **SIZES | {"choices": 2}) == [[[5, 7], [99]], []]


@pytest.mark.parametrize(("said", "why"), [
    (7, "JSON"), ([[[7]]], "JSON"), ("", "list of chunks"), ("[[[7]]", "list of chunks"),
    ('[[["7"]]]', "list of chunks"), ("[[[true]]]", "list of chunks"), ("[[[7.0]]]", "list of chunks"),
    ("[[7]]", "list of chunks"),
    ('{"a": 1}', "list of chunks"), ("null", "list of chunks"), ("[" * 119, "list of chunks"),
    ("[]", "0 choices, and the request has 1"), ("[[],[]]", "2 choices"), ("[[[1,2,3],[4,5]]]", "5 tokens"),
    ("[[[-1]]]", "there are 100"), ("[[[100]]]", "there are 100"), ("[[[7], [99999999999999999999]]]", "there are 100"),
    (" " * 121, "121 characters"),
])  # fmt: skip
def test_what_no_gateway_would_say_is_refused(said, why):
    """Before anything is done with it."""
    with pytest.raises(ArgumentRefused, match=why):
        read(said, **SIZES)


def params(**more):
    usual = {"logprobs": None, "seed": None, "temperature": 1.0, "prompt_logprobs": None, "flat_logprobs": False}
    return SimpleNamespace(**usual | more)


@pytest.mark.parametrize(("fields", "whole", "seeds", "named"), [
    ({}, True, False, None), ({"logprobs": 2}, False, True, None), ({"logprobs": 2}, True, True, "logprobs"),
    ({"prompt_logprobs": 1}, False, True, None), ({"prompt_logprobs": 0}, True, True, "prompt_logprobs"),
    ({"thinking_token_budget": 9}, False, True, "thinking_token_budget"), ({"flat_logprobs": True}, False, True,
                                                                          "flat_logprobs"),
    ({"seed": 3}, False, False, "seed"), ({"seed": 3}, False, True, None), ({"seed": 3, "temperature": 0}, False, False,
                                                                          None),
])  # fmt: skip
def test_a_field_that_is_not_continued_is_named(fields, whole, seeds, named):
    """And only such a one."""
    found = refused_field(params(**fields), whole=whole, seeds=seeds)
    assert (found and found[0]) == named


@pytest.mark.parametrize(("facts", "wanted", "missing", "others", "why"), [
    (Facts(), True, [], [], ""), (Facts(async_scheduling=True), True, [], [], ""),
    (Facts(), False, ["x"], [], '"continue" is false'), (Facts(), True, ["Request.gone()"], [], "Request.gone()"),
    (Facts(v2_runner=True), True, [], [], "V2 runner"), (Facts(speculative_decoding=True), True, [], [], "speculative"),
    (Facts(pipeline_parallel=True), True, [], [], "pipeline"), (Facts(pooling=True), True, [], [], "pooling"),
    (Facts(own_logits_processors=True), True, [], [], "logits processors"),
    (Facts(watermarks=True), True, [], [], "marks"),
    (Facts(), True, [], ["OffloadingConnector"], "OffloadingConnector beside it"),
])  # fmt: skip
def test_an_engine_says_why_it_continues_nothing(facts, wanted, missing, others, why):
    """In one line."""
    found = why_not_here(facts, wanted, missing, others)
    assert (why in found, bool(found)) == (True, bool(why))


@pytest.mark.parametrize("said", ["[[[7]]]", [7], 7, None, {}, {"choices": [[7]]}])
def test_only_what_a_server_put_there_itself_are_tokens(said):
    """Of what a client says, nothing is."""
    assert ids_of(SimpleNamespace(extra_args={KEY: said})) == []
    assert ids_of(SimpleNamespace(extra_args=None)) == ids_of(None) == []
    assert ids_of(SimpleNamespace(extra_args={KEY: {"ids": [7]}})) == [7]


@pytest.mark.parametrize("ids", [[100], [-1], [True], [1.0], ["7"], "7", (7,), 7, [7] * 4, [7] * 5])
def test_an_engine_takes_no_token_that_it_has_not_nor_too_many(ids):
    """Whichever front let them in: such a request fails, and no other."""
    params = SimpleNamespace(extra_args={KEY: {"ids": ids}}, max_tokens=4)
    with pytest.raises(ValueError, match="given out"):
        known_ids(params, 100, room=50)


def test_an_engine_takes_what_is_right():
    """The first and the last token of its vocabulary, up to the last that it may have; or none at all."""
    params = SimpleNamespace(extra_args={KEY: {"ids": [0, 99, 7]}}, max_tokens=4)
    assert known_ids(params, 100, room=50) == [0, 99, 7]
    assert known_ids(SimpleNamespace(extra_args=None, max_tokens=1), 100, room=0) == []
    with pytest.raises(ValueError, match="none is left"):
        known_ids(params, 100, room=3)


def drawn(generator: torch.Generator) -> list[int]:
    return torch.randint(0, 2**31, (5,), generator=generator).tolist()


def test_the_last_draw_is_taken_back():
    """As vLLM does with those of a prompt's parts; a plain generator refuses."""
    plain = torch.Generator().manual_seed(3)
    with pytest.raises(RuntimeError):
        plain.set_offset(plain.get_offset() - 4)
    generator = CpuGenerator.of(plain)
    torch.rand(3, generator=generator)
    torch.rand(3, generator=plain)

    remembered(generator)
    torch.rand(9, generator=generator)
    generator.set_offset(generator.get_offset() - 4)

    assert drawn(generator) == drawn(plain)


def one_integer(logits, generators, k, p):
    for generator in generators.values():
        torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)


def one_row(logits, generators, k, p):
    for generator in generators.values():
        torch.empty_like(logits[0]).exponential_(generator=generator)


@pytest.mark.parametrize("sampler", [one_integer, one_row])
def test_a_generator_is_moved_on_by_what_the_sampler_draws(sampler):
    """Whichever it is."""
    move = move_of(sampler, 50, torch.device("cpu"))
    here, there = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for _ in range(7):
        sampler(torch.zeros(1, 50), {0: there}, None, None)

    move(here, 7)

    assert drawn(here) == drawn(there)


def test_a_sampler_that_draws_otherwise_is_found_out():
    """Then seeds are not continued."""
    def two(logits, generators, k, p):
        for generator in generators.values():
            torch.rand(3, generator=generator)

    assert move_of(two, 50, torch.device("cpu")) is None
    assert move_of(lambda *given: None, 50, torch.device("cpu")) is None


class Client:
    """Of engines that are never asked."""

    def __init__(self) -> None:
        self.output_processor = SimpleNamespace(add_request=lambda *given, **more: None)
        self.model_config = SimpleNamespace(max_model_len=100, get_vocab_size=lambda: 50)

    def generate(self, prompt, sampling_params, *given, **more):
        return sampling_params.extra_args


def continuing_with(*sung: object) -> tuple[Continuing, list[bool]]:
    """The canary does these, one after the other. Returns what it was asked for, too: seeded or not."""
    asked, answers = [], iter(sung)

    async def sings(client, number, *, seeded):
        asked.append(seeded)
        one = next(answers)
        if isinstance(one, Exception):
            raise one
        if isinstance(one, asyncio.Event):
            await one.wait()
        return bool(one)

    return Continuing(Client(), sings=sings), asked


@pytest.mark.parametrize(("sung", "continues", "seeds"), [
    ([True], True, True), ([False, True], True, True), ([False, False, True], True, False),
    ([False, False, False, True], True, False), ([False] * 4, False, False),
])  # fmt: skip
def test_a_server_continues_what_its_canary_has_proved(sung, continues, seeds):
    """Two tries with a seed, then two without; once."""
    async def story() -> None:
        mine, asked = continuing_with(*sung)
        for _ in range(3):
            told = await mine.answer([SAID, SAID])
            assert (told["continues"] is not None) == continues
            assert bool(told.get("continues_not")) == (not continues)
        assert len(asked) == len(sung)
        if continues:
            assert told["continues"]["seeds"] == seeds

    asyncio.run(story())


def test_a_worker_without_seeds_is_asked_for_none():
    """Nor are they said to be continued."""
    async def story() -> None:
        mine, asked = continuing_with(True)
        told = await mine.answer([SAID, SAID | {"seeds": False}])
        assert told["continues"]["seeds"] is False
        assert asked == [False]

    asyncio.run(story())


def test_any_half_that_does_not_continue_speaks_for_all():
    """And the canary is spared."""
    async def story() -> None:
        mine, asked = continuing_with()
        told = await mine.answer([SAID, SAID | {"continues_not": "why"}])
        assert told == {"continues": None, "continues_not": "why"}
        assert asked == []

    asyncio.run(story())


def test_a_canary_that_is_late_or_fails_is_asked_again(monkeypatch):
    """The status does not wait for it longer than a moment."""
    monkeypatch.setattr(continuing, "WAIT_S_MAX", 0.01)

    async def story() -> None:
        late = asyncio.Event()
        mine, _ = continuing_with(RuntimeError(), late)
        assert (await mine.answer([SAID]))["continues_not"] == UNTRIED
        assert (await mine.answer([SAID]))["continues_not"] == UNTRIED
        assert (await mine.answer([SAID]))["continues_not"] == UNTRIED
        late.set()
        monkeypatch.setattr(continuing, "WAIT_S_MAX", 10)
        assert (await mine.answer([SAID]))["continues"]

    asyncio.run(story())


def test_nothing_is_continued_before_it_is_proved():
    """It is refused as what it is; once it is, it is read."""
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import RequestOutputKind

    async def story() -> None:
        client_said = params(extra_args={KEY: "[[[7], [8]]]"}, n=1, max_tokens=9, output_kind=RequestOutputKind.DELTA)
        prompt = {"type": "token", "prompt_token_ids": [1, 2]}
        mine, _ = continuing_with(True)
        client = mine._client
        with pytest.raises(VLLMValidationError, match="continues nothing"):
            client.generate(prompt, client_said, "name")
        await mine.answer([SAID])
        assert client.generate(prompt, client_said, "name") == {KEY: {"choices": [[[7], [8]]]}}
        assert client_said.extra_args == {KEY: "[[[7], [8]]]"}
        for dictionary in ({"choices": [[[1 << 40]]]}, {"ids": [1 << 40]}):  # as /inference/v1/generate takes them
            with pytest.raises(VLLMValidationError, match="JSON text"):
                client.generate(prompt, params(**vars(client_said) | {"extra_args": {KEY: dictionary}}), "name")
        for other in ({"type": "multimodal", "prompt_token_ids": [1]}, {"type": "embeds"}, "text"):
            with pytest.raises(VLLMValidationError, match="not all tokens"):
                client.generate(other, client_said, "name")

    asyncio.run(story())


def test_where_hooks_are_missing_that_is_said():
    """And nothing is put in their place."""
    async def story() -> None:
        client = Client()
        before = client.generate
        told = await Continuing(client, ["OutputProcessor.gone()"]).answer([SAID])
        assert told == {"continues": None, "continues_not": "this vLLM has no OutputProcessor.gone()"}
        assert client.generate == before

    asyncio.run(story())


def test_what_was_given_out_before_stays_apart_from_what_follows():
    """Each of it an event of its own, in order; an error goes before all that waits."""
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.output_processor import RequestOutputCollector

    from vllm_plugin.restore.emission import _apart

    async def story() -> None:
        apart, queue = _apart(), RequestOutputCollector(RequestOutputKind.DELTA, "name")
        with apart.kept(queue):
            for said in "abc":
                queue.put(said)
        queue.put("d")
        assert [queue.get_nowait(), await queue.get(), await queue.get()] == [None, "a", "b"]
        queue.put("e")
        assert [await queue.get() for _ in "cde"] == ["c", "d", "e"]
        assert (queue.get_nowait(), queue.before) == (None, 0)

        with apart.kept(queue):
            queue.put("f")
        queue.put("g")
        queue.put(RuntimeError("dead"))
        with pytest.raises(RuntimeError, match="dead"):
            await queue.get()
        assert not queue.later

    asyncio.run(story())
