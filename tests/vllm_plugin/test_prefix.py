"""What of prompts was found computed already, by length and by what else a step computes."""

from dataclasses import dataclass

import pytest

from vllm_plugin.prefix import Prefixes
from vllm_plugin.schedule import Scheduled


@dataclass
class FakeRequest:
    """A request, of which so many tokens are computed."""

    request_id: str
    num_tokens: int
    num_computed_tokens: int = 0
    block_hashes: tuple[bytes, ...] = ()


class Counts(dict):
    """By name."""

    def count(self, name: str, number: float) -> None:
        self[name] = self.get(name, 0) + number


def scheduled(name: str, tokens: int, computed: int = 0, fresh: bool = True) -> Scheduled:
    return Scheduled(FakeRequest(name, tokens, computed), tokens - computed, (), fresh)


def decoding(name: str) -> Scheduled:
    return scheduled(name, 50, 49, fresh=False)


def prefilling(name: str) -> Scheduled:
    return scheduled(name, 50, 20, fresh=False)


@pytest.mark.parametrize(("others", "batch"), [
    ([], "alone"),
    ([decoding("a"), decoding("b")], "decode"),
    ([prefilling("a")], "prefill"),
    ([scheduled("a", 30, 29)], "decode"),  # all of it was there but one token
    ([decoding("a"), prefilling("b")], "mixed"),
])  # fmt: skip
def test_a_request_is_counted_by_what_else_its_step_computes(others, batch):
    """It is not among the others itself."""
    counts = Counts()
    Prefixes(counts.count).step([*others[:1], scheduled("r", 300, 256), *others[1:]])

    of_it = {name: number for name, number in counts.items() if "<=1k" in name}
    assert of_it == {f"prefix.asked.<=1k.{batch}": 300, f"prefix.hit.<=1k.{batch}": 256}


@pytest.mark.parametrize(("tokens", "length"), [
    (1, "<=256"), (256, "<=256"), (257, "<=1k"), (1024, "<=1k"), (4096, "<=4k"), (16384, "<=16k"), (16385, ">16k"),
])  # fmt: skip
def test_lengths_are_few(tokens, length):
    """A label for each request's own would be a series for each."""
    counts = Counts()
    Prefixes(counts.count).step([scheduled("r", tokens)])

    assert counts == {f"prefix.asked.{length}.alone": tokens, f"prefix.hit.{length}.alone": 0}


def test_two_that_are_admitted_together_are_each_others_prefill():
    """Both are counted."""
    counts = Counts()
    Prefixes(counts.count).step([scheduled("a", 10), scheduled("b", 20)])

    assert counts["prefix.asked.<=256.prefill"] == 30


def test_a_step_that_admits_nobody_asks_its_requests_nothing():
    """It is most of them, and there may be hundreds of requests in it."""
    counts = Counts()
    Prefixes(counts.count).step([Scheduled(None, 1, (), False)])  # there is nobody to be asked
    assert not counts


def test_a_request_counts_once():
    """Not when it goes on, nor when it was preempted and is admitted again; another of its name does."""
    counts = Counts()
    prefixes = Prefixes(counts.count)
    prefixes.step([scheduled("r", 10)])
    prefixes.step([scheduled("r", 11, 10, fresh=False)])
    prefixes.step([scheduled("r", 12, 8)])
    assert counts["prefix.asked.<=256.alone"] == 10

    prefixes.finished("r")
    prefixes.step([scheduled("r", 5)])
    assert counts["prefix.asked.<=256.alone"] == 15
