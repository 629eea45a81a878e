"""Facts, as they arrive in vLLM's log."""

import json
import logging

import pytest

from vllm_plugin import logs


@pytest.fixture
def heard(monkeypatch):
    """What reaches the handlers of the logger that vLLM sets up. It has no "propagate", and so it is here."""
    records: list[logging.LogRecord] = []
    vllm = logging.getLogger("vllm")
    handler = logging.Handler()
    handler.emit = records.append
    monkeypatch.setattr(vllm, "propagate", False)
    monkeypatch.setattr(vllm, "level", logging.INFO)
    vllm.manager._clear_cache()
    vllm.addHandler(handler)
    yield records
    vllm.removeHandler(handler)


def test_a_fact_is_its_name_and_what_belongs_to_it(heard):
    """In one line, whatever is in it; by the logger, the level, and the place of who said it."""
    logs.logger("worker").error("holdfast.page_corrupt", block=7, kind="changed", why='one "two"', whole=True, at=None)

    (record,) = heard
    assert record.getMessage() == r'holdfast.page_corrupt block=7 kind=changed why="one \"two\"" whole=true at='
    assert (record.name, record.levelname) == ("vllm.holdfast.worker", "ERROR")
    assert record.filename == "test_logs.py"


def test_what_a_client_named_stays_in_its_line(heard):
    """Nothing of it begins another line, or reaches a terminal as more than letters."""
    logs.logger().warning("holdfast.request_recomputed", request="a\r\nERROR\x1b[2Jb", step=3)

    assert heard[0].getMessage() == r"holdfast.request_recomputed request=a\r\nERROR\x1b[2Jb step=3"


def test_a_fact_alone_is_its_name(heard):
    """Per cent signs in it are no places to be filled."""
    logs.logger().info("holdfast.started 100%s")

    assert heard[0].getMessage() == "holdfast.started 100%s"
    assert heard[0].name == "vllm.holdfast"


def test_what_vllm_was_told_not_to_log_is_not_logged(heard):
    """Its level holds."""
    logs.logger().debug("holdfast.detail")
    logs.logger().info("holdfast.started")

    assert [record.getMessage() for record in heard] == ["holdfast.started"]


def test_facts_may_be_json(heard, monkeypatch):
    """One object each, which begins with its name."""
    monkeypatch.setenv(logs.FORM, "json")
    logs.logger().warning("holdfast.page_lost", block=7, kind="changed", other={1}, position=None)

    assert heard[0].getMessage().startswith('{"event": "holdfast.page_lost", ')
    assert json.loads(heard[0].getMessage()) == {
        "event": "holdfast.page_lost", "block": 7, "kind": "changed", "other": "{1}", "position": None,
    }  # fmt: skip
