"""Log set-up: one event per fact; JSON lines for machines, colours for a terminal; no secrets in either."""

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO, cast

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED = "[redacted]"
DEPTH_MAX = 8  # levels of nested values that are looked through; deeper ones are left out
_NAMES = frozenset({"authorization", "proxy-authorization", "key", "secret", "api_key", "api-key", "x-api-key"})
_SECRETS = re.compile(r"hf-[A-Za-z0-9_-]{20,}|Bearer\s+\S+", re.IGNORECASE)
# A line without any of these, in lower case, holds nothing that is redacted.
_TRACES = (b"hf-", b"bearer", *(f'"{name}":'.encode() for name in sorted(_NAMES)))


def set_up(stream: TextIO | None = None, *, tty: bool | None = None, level: str = "info") -> None:
    """Send all events, those of libraries too, to `stream` (stderr); may be called again.

    tty: whether a person reads along; asked of the stream where None.
    """
    stream = cast(TextIO, Patient(stream or sys.stderr))
    chain = [*_CHAIN, line]
    if stream.isatty() if tty is None else tty:
        # Plain tracebacks: the pretty ones print local variables, and those hold prompts and keys.
        plain = structlog.dev.plain_traceback
        chain = [*_CHAIN, redact, structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=chain,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    # remove_meta goes first: the record in it is an object, which redaction cannot look into.
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[remove_meta, *chain]))
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


class Patient:
    """A stream whose errors nobody meets: where the log's disk is full, or its reader gone, requests go on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write a line; one that cannot be written is lost."""
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Send what was written on its way."""
        with suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether a person reads along."""
        return self._stream.isatty()


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """A structlog processor: replace values under telling names, and secrets inside any text."""
    return {name: _clean(name, value, DEPTH_MAX) for name, value in event.items()}


def line(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """A structlog processor, the last: the event as JSON, redacted.

    Looking through every value is dear, and secrets are rare: the finished line is searched for traces of one first.
    """
    try:
        if all(isinstance(value, _SCALAR) for value in event.values()):
            written = _encode(event)
            lower = written.lower()
            if not any(trace in lower for trace in _TRACES):
                return written.decode()
        return _encode(redact(logger, method, event)).decode()
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(redact(logger, method, event))


# Exceptions become text before redaction, which then sees them too.
_CHAIN: list[Processor] = [
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]
_SCALAR = (str, int, float, type(None))
_encode = msgspec.json.Encoder(enc_hook=str).encode


def _clean(name: object, value: Any, depth: int) -> Any:
    if isinstance(name, str) and name.lower() in _NAMES:
        return REDACTED
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        return {_text(key): _clean(key, item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(None, item, depth - 1) for item in value]
    return _text(value)


def _text(value: object) -> str:
    """Anything else as text without secrets; bytes and objects through their repr."""
    return _SECRETS.sub(REDACTED, value if isinstance(value, str) else repr(value))
