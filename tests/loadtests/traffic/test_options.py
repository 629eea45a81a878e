"""Options that say nothing are refused by name."""

import argparse
from typing import Any

import pytest

from loadtests.traffic.options import OPTIONS, BadOption, Sla, add, check, read, root, sla
from loadtests.traffic.record import Stage
from tests.loadtests.traffic.runs import failed, whole


def given(**more: Any) -> argparse.Namespace:
    """All options as they are unless something else is said."""
    parser = argparse.ArgumentParser()
    for name, words in OPTIONS.items():
        parser.add_argument(f"--{name}", **words)
    return argparse.Namespace(**(vars(parser.parse_args([])) | more))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("rate", "fast", "--rate 'fast'"), ("rate", "1,,2", "--rate"), ("rate", "-1", "--rate"),
        ("sla", "ttft", "--sla"),
        ("sla", "p99=1", "--sla"), ("size", 0.0, "--size 0"), ("speed", 1e9, "--speed"),
        ("in_flight", 0, "--in-flight 0"),
        ("keys", "/none", "No such file"), ("direct", "localhost", "write a URL"), ("metrics", "x", "write a URL"),
    ],
)  # fmt: skip
def test_what_says_nothing_is_refused(option, value, words):
    """With the option's name."""
    with pytest.raises(BadOption) as told:
        read(given(**{option: value}), {})
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("scenarios", "names", "rate", "words"),
    [
        ({"replay"}, "", "", "needs a trace"),
        ({"replay"}, "trace", "4", "without --rate"), ({"replay", "chat"}, "trace", "", "alone"),
        ({"tenants"}, "alice bob", "1", "none of carol, dave, erin, mallory"),
    ],
)  # fmt: skip
def test_scenarios_that_cannot_be_had_so_are_refused(scenarios, names, rate, words, tmp_path):
    """A trace says when its clients come; no tenant uses another one's key."""
    trace, keys = tmp_path / "trace", tmp_path / "keys"
    trace.write_text('{"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [1]}\n')
    keys.write_text("".join(f"{name} sk-{name}\n" for name in names.split()))
    more = {"trace": str(trace)} if names == "trace" else {"keys": str(keys)} if names else {}

    assert words in refusal(scenarios, {}, rate=rate, **more)


def test_scenarios_that_can_be_had_are(tmp_path):
    """Tenants with all their keys, with one for all, with none; and a replay."""
    trace, keys = tmp_path / "trace", tmp_path / "keys"
    trace.write_text('{"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [1]}\n')
    keys.write_text("".join(f"{name} sk-{name}\n" for name in ("alice", "bob", "carol", "dave", "erin", "mallory")))
    for environ, more in (({}, {"keys": str(keys)}), ({"OPENAI_API_KEY": "k"}, {}), ({}, {})):
        assert refusal({"tenants"}, environ, rate="1", **more) == ""
    assert refusal({"replay"}, {}, trace=str(trace)) == ""


def refusal(scenarios: set[str], environ: dict[str, str], **more: Any) -> str:
    """Why scenarios cannot be had with these options; "" where they can."""
    try:
        check(scenarios, read(given(**more), environ))
    except BadOption as refused:
        return str(refused)
    return ""


def test_keys_come_from_a_file_or_from_the_environment(tmp_path):
    """Never from the command line; a bad line is told by its number, and not by what is in it."""
    path = tmp_path / "keys"
    path.write_text("# ours\nalice hf-1\n\nbob hf-2  # his\n")
    assert read(given(keys=str(path)), {}).keys == {"alice": "hf-1", "bob": "hf-2"}
    assert read(given(), {"OPENAI_API_KEY": "hf-3"}).keys == {"": "hf-3"}
    assert read(given(), {}).keys == {}

    path.write_text("alice hf-1\nhf-secret\n")
    with pytest.raises(BadOption, match=":2: write") as told:
        read(given(keys=str(path)), {})
    assert "hf-secret" not in str(told.value)


def test_a_promise_is_kept_by_whole_answers_in_time():
    """One part alone may be said; an answer of one token has no time between tokens."""
    promise = sla("ttft=0.5, tpot=0.02")

    assert promise == Sla(0.5, 0.02, None)
    assert promise.kept(whole(0.0, first_s=0.5, token_s=0.02))
    assert not promise.kept(whole(0.0, first_s=0.51))
    assert not promise.kept(whole(0.0, token_s=0.03))
    assert promise.kept(whole(0.0, tokens=1, last_s=None))
    assert not promise.kept(failed(0.0, Stage.LEFT, first_s=0.1, status=200))
    assert not sla("e2e=0.1").kept(whole(0.0))


@pytest.mark.parametrize("url", ["http://x:1", "http://x:1/", "http://x:1/v1", "http://x:1/v1/"])
def test_a_url_is_taken_with_v1_and_without(url):
    """As clients write it, and as servers are started."""
    assert root(url) == "http://x:1"


def test_locusts_parser_takes_them(monkeypatch):
    """With the environment's names, as locust's own options have them."""
    seen: dict[str, dict[str, Any]] = {}

    class Parser:
        def add_argument_group(self, *_: str) -> "Parser":
            return self

        def add_argument(self, name: str, **words: Any) -> None:
            seen[name] = words

    add(Parser())
    assert seen["--rate"]["env_var"] == "HOLDFAST_LOAD_RATE"
    assert seen["--each-s"]["env_var"] == "HOLDFAST_LOAD_EACH_S"
