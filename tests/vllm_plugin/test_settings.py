"""What an operator may say, and what is answered to what he may not; what Holdfast does not start with."""

import pytest

from vllm_plugin.refusals import Facts, is_protected, of_weights, refusals
from vllm_plugin.settings import Settings, SettingsRefused


def test_nothing_said_is_verify_all_and_recompute():
    """The safe things are the defaults."""
    settings = Settings.of({})

    assert settings == Settings()
    assert (settings.verify, settings.abort, settings.unprotected) == (1.0, False, frozenset())


def test_all_may_be_said():
    """Each setting has its word."""
    said = {
        "verify": "sampled:0.25", "scrub": "all", "scrub_floor_ms": 2, "weights": 0.05, "tails": False,
        "on_corruption": "abort", "unprotected": ["v2-runner"], "store": "lmdb:///dev/shm/holdfast",
    }  # fmt: skip

    assert Settings.of(said) == Settings(
        0.25, None, 0.002, 0.05, False, True, frozenset(["v2-runner"]), "lmdb:///dev/shm/holdfast"
    )
    assert Settings.of({"verify": "off"}).verify == 0


@pytest.mark.parametrize("said", [
    {"verfy": "always"}, {"verify": "sometimes"}, {"verify": "sampled:2"}, {"verify": "sampled:x"}, {"scrub": "some"},
    {"scrub": 2}, {"scrub": True}, {"scrub_floor_ms": -1}, {"tails": "yes"}, {"on_corruption": "ignore"},
    {"on_corruption": []}, {"unprotected": "everything"}, {"unprotected": {}},
    {"store": "here"}, {"store": 1},
])  # fmt: skip
def test_what_cannot_be_is_refused_by_name(said):
    """With what to write instead."""
    with pytest.raises(SettingsRefused, match=next(iter(said))) as refused:
        Settings.of(said)
    assert "write" in str(refused.value)


def test_what_is_proved_is_not_refused():
    """The plain case."""
    assert refusals(Facts(), frozenset()) == []
    assert is_protected(Facts())


@pytest.mark.parametrize(("fact", "word"), [
    ({"prefix_caching": False}, "--enable-prefix-caching"),
    ({"encoder_decoder": True}, "without Holdfast"),
    ({"context_parallel": True}, "--decode-context-parallel-size 1"),
    ({"groups": ("full attention", "MambaSpec")}, "MambaSpec"),
    ({"groups": ("full attention", "sliding window")}, "one group"),
    ({"async_scheduling": True}, "--no-async-scheduling"),
    ({"v2_runner": True}, "VLLM_USE_V2_MODEL_RUNNER=0"),
    ({"speculative_decoding": True}, "--speculative-config"),
    ({"pipeline_parallel": True}, "--pipeline-parallel-size 1"),
])  # fmt: skip
def test_what_is_not_proved_is_refused_in_one_line(fact, word):
    """Which says what to write instead."""
    (line,) = refusals(Facts(**fact), frozenset())

    assert word in line
    assert "\n" not in line


def test_a_store_of_many_workers_is_refused():
    """A page is whole only when all have their part of it."""
    (line,) = refusals(Facts(workers=2), frozenset(["weights"]), "lmdb:///dev/shm/x")

    assert "store" in line
    assert refusals(Facts(workers=2), frozenset()) == []


def test_weights_that_cannot_be_bound_are_told_with_what_to_write():
    """One line, with the reason."""
    line = of_weights("Worker.reload_weights is not there")

    assert "Worker.reload_weights is not there" in line
    assert '"unprotected":["weights"]' in line


@pytest.mark.parametrize("word", ["async-scheduling", "v2-runner", "speculative-decoding", "pipeline-parallel"])
def test_what_is_unprotected_must_be_said_and_is_not_called_protected(word):
    """The gate alone runs then."""
    facts = Facts(**{word.replace("-", "_"): True})

    assert refusals(facts, frozenset([word])) == []
    assert not is_protected(facts)


@pytest.mark.parametrize(("verify", "steps"), [("always", 1), ("sampled:0.1", 10), ("sampled:0.3", 3), ("off", 1)])
def test_what_is_being_filled_is_looked_at_as_seldom_as_what_is_hit(verify, steps):
    """Where nothing that is hit is looked at, that is all there is."""
    assert Settings.of({"verify": verify}).tail_steps == steps
