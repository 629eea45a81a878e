"""Logs: JSON lines for machines, and no secrets in them."""

import errno
import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog

from gateway.watch import logs

SECRET = "hf-" + "s" * 43


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    logs.set_up(stream)
    yield stream
    structlog.reset_defaults()
    root.handlers, root.level = before


def test_one_fact_is_one_json_line(out: io.StringIO):
    """Where nobody reads along, an event is one JSON object on one line."""
    structlog.get_logger().info("request.settled", tenant="key_1", tokens_settled=7)

    event = json.loads(out.getvalue())

    assert out.getvalue().count("\n") == 1
    assert (event["event"], event["level"], event["tenant"], event["tokens_settled"]) == (
        "request.settled",
        "info",
        "key_1",
        7,
    )
    assert event["timestamp"].endswith("Z")


@pytest.mark.parametrize("name", ["authorization", "Authorization", "key", "secret", "api_key", "x-api-key"])
def test_telling_names_are_redacted(out: io.StringIO, name: str):
    """A value under a telling name is not written, at any depth."""
    structlog.get_logger().info("e", **{name: "sesame", "nested": [{name: ["sesame"]}]})

    assert "sesame" not in out.getvalue()
    assert json.loads(out.getvalue())[name] == logs.REDACTED


@pytest.mark.parametrize("value", [SECRET, f"at {SECRET}!", "Bearer sesame", "bearer sesame", SECRET.encode()])
def test_secrets_in_text_are_redacted(out: io.StringIO, value: str | bytes):
    """A key inside any text is not written: event, value, nested, bytes, name, object."""
    deep = {"a": ({value},), value: 1}

    structlog.get_logger().info(str(value), plain=value, deep=deep, error=ValueError(value))

    assert "sss" not in out.getvalue()
    assert "sesame" not in out.getvalue()


@pytest.mark.parametrize("value", [SECRET, SECRET.upper().replace("HF-", "Hf-"), "Bearer sesame", "BEARER\nsesame"])
def test_secrets_in_flat_events_are_redacted(out: io.StringIO, value: str):
    """An event of plain values alone, as most are, is looked through just so."""
    structlog.get_logger().info("e", said=f"at {value}!")

    said = json.loads(out.getvalue())["said"]
    assert "sss" not in said.lower()
    assert "sesame" not in said


def test_half_a_character_is_written(out: io.StringIO):
    """Text that cannot be encoded breaks no request, and hides no secret."""
    structlog.get_logger().info("e", path="/\udc80", word=f"\udc80 {SECRET}")

    event = json.loads(out.getvalue())

    assert (event["path"], event["word"]) == ("/\udc80", "\udc80 [redacted]")


def test_names_are_told_from_values(out: io.StringIO):
    """A flat event with a telling name is redacted; one that only mentions it is not."""
    structlog.get_logger().info("key", secretive="secret", SECRET="sesame")

    event = json.loads(out.getvalue())

    assert (event["event"], event["secretive"], event["SECRET"]) == ("key", "secret", logs.REDACTED)


def test_what_is_no_secret_stays(out: io.StringIO):
    """Key ids, numbers and ordinary words are written as they are."""
    structlog.get_logger().info("e", key_id="key_1", n=1.5, ok=True, none=None, word="hf-short", items=["a"])

    event = json.loads(out.getvalue())

    assert {name: event[name] for name in ("key_id", "n", "ok", "none", "word", "items")} == {
        "key_id": "key_1",
        "n": 1.5,
        "ok": True,
        "none": None,
        "word": "hf-short",
        "items": ["a"],
    }


def test_tracebacks_are_redacted(out: io.StringIO):
    """A secret in an exception's text does not reach the log by way of its traceback."""
    try:
        raise RuntimeError(f"no entry for {SECRET}")
    except RuntimeError:
        structlog.get_logger().exception("fault")

    assert "RuntimeError: no entry for [redacted]" in json.loads(out.getvalue())["exception"]


def test_libraries_log_the_same_way(out: io.StringIO):
    """What libraries log is a redacted JSON line too."""
    logging.getLogger("aiohttp.server").error("bad header %s", f"Bearer {SECRET}")

    event = json.loads(out.getvalue())

    assert (event["event"], event["level"]) == ("bad header [redacted]", "error")


def test_a_terminal_gets_readable_lines(out: io.StringIO):
    """Where a person reads along, events are not JSON, and are redacted all the same."""
    logs.set_up(out, tty=True)

    structlog.get_logger().info("hello", secret=SECRET, word=SECRET)

    assert "hello" in out.getvalue()
    assert not out.getvalue().startswith("{")
    assert "sss" not in out.getvalue()


def test_a_terminal_gets_plain_tracebacks(out: io.StringIO):
    """A traceback on a terminal is redacted, and shows no local variables."""
    logs.set_up(out, tty=True)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            local = "sesame"
            raise RuntimeError(f"no entry for {SECRET}, {len(local)}")
        except RuntimeError:
            structlog.get_logger().exception("fault")

    assert "RuntimeError: no entry for [redacted], 6" in out.getvalue()
    assert "local = 'sesame'" not in out.getvalue()


def test_cycles_end(out: io.StringIO):
    """A value that holds itself is written to a bounded depth."""
    loop: list[object] = []
    loop.append(loop)

    structlog.get_logger().info("e", loop=loop)

    assert "..." in out.getvalue()


def test_quieter_events_are_dropped(out: io.StringIO):
    """Below the level nothing is written."""
    structlog.get_logger().debug("chatter")

    assert out.getvalue() == ""


class Full(io.StringIO):
    """A log on a full disk, until there is room."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)

    def flush(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_on_a_full_disk_breaks_nothing(out: io.StringIO):
    """A line that cannot be written raises nothing, whoever logs it; later lines are written."""
    stream = Full()
    logs.set_up(stream)

    structlog.get_logger().info("lost")
    logging.getLogger("library").error("lost too")
    stream.full = False
    structlog.get_logger().info("kept")

    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["kept"]
