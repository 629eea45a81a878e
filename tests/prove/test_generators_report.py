"""What is said of other generators of load, of runs that nobody made; the commands are those of the document."""

from typing import Any

import pytest

from tests.prove import generators


def ran(name: str, **more: Any) -> dict[str, Any]:
    """A run in which all went well."""
    said = generators.command(name)
    requests, tokens = generators.asked(name, said)
    return {
        "version": "1.0", "command": said, "status": 0, "endings": {"finished": requests},
        "tokens": requests * tokens, "faults": [], "said": "",
    } | more  # fmt: skip


def verdict(**more: Any) -> list[bool]:
    done = {generators.NAME: {"on": "today", "aiperf": ran("aiperf"), "guidellm": ran("guidellm", **more)}}
    assert generators.lines(done)
    return list(generators.verdicts(done).values())


def test_requests_that_all_finished_are_a_yes():
    """As many as the command says, each with its tokens."""
    assert verdict() == [True, True]


@pytest.mark.parametrize(
    "bad",
    [{"status": 1}, {"endings": {"finished": 39}}, {"endings": {"finished": 40, "refused": 1}}, {"tokens": 1279},
     {"faults": ["Traceback"]}],
)  # fmt: skip
def test_anything_else_is_a_no(bad):
    """Of that generator alone."""
    assert verdict(**bad) == [True, False]


@pytest.mark.parametrize("name", generators.NAMES)
def test_what_a_command_stands_for_is_put_into_it(name):
    """Nothing of the document's own address, directory and key is left."""
    told = {"http://127.0.0.1:8080": "http://127.0.0.1:9", "DIR": "/m", "KEY": "hf-1"}

    said = [generators.with_values(word, told) for word in generators.command(name).split()]

    assert any("http://127.0.0.1:9" in word for word in said)
    assert any(word.endswith("/m") for word in said)
    assert any(word.endswith("hf-1") for word in said)
    assert not [word for word in said if "8080" in word or "KEY" in word or "DIR" in word]
