"""What a continued request is told to have found, for vLLM's statistics."""

from types import SimpleNamespace

import msgspec
import pytest

from vllm_plugin.restore import found


@pytest.mark.parametrize(("tokens", "cached"), [(0, 0), (64, 64), (100, 100), (160, 100)])
def test_no_more_of_a_prompt_was_found_than_there_is(tokens, cached):
    """Pages of the answer are found, too, which vLLM would not believe."""
    request = SimpleNamespace(prefill_stats=found.stats(), num_prompt_tokens=100)
    found.tell(request, 32)
    found.tell(request, tokens)
    told = request.prefill_stats
    told.finalize(100)

    assert (told.num_prompt_tokens, told.num_cached_tokens, told.num_computed_tokens) == (100, cached, 100 - cached)
    assert told.num_cache_creation_tokens == 100 - cached


def test_vllm_fills_them_not_itself_and_hands_them_on_as_its_own():
    """It asserts, for who is true, that only a prompt is found; what goes to the front is its own kind."""
    from vllm.v1.metrics.stats import PrefillStats

    told = found.stats()
    found.tell(SimpleNamespace(prefill_stats=told, num_prompt_tokens=100), 64)

    assert not told
    assert isinstance(told, PrefillStats)
    there = msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=PrefillStats)
    assert (bool(there), there.num_cached_tokens) == (True, 64)


@pytest.mark.parametrize("request_", [SimpleNamespace(), SimpleNamespace(prefill_stats=None)])
def test_others_are_told_nothing(request_):
    """Whose statistics vLLM fills, or that have none."""
    found.tell(request_, 64)

    assert getattr(request_, "prefill_stats", None) is None
