"""Facts in vLLM's own log: one event each, by name, with what belongs to it as key=value.

    WARNING 11-29 10:00:00 [scheduler_side.py:362] holdfast.page_lost block=7 position=64 kind=changed where=gate

They go through the standard library's loggers below "vllm": whatever vLLM was told about its log holds for them, and
nobody sets up anything. With HOLDFAST_LOG=json in the environment, the text of each is one JSON object instead.
Nothing of a request but its id is ever said: no tokens, no prompt, no session.
"""

import logging
import os
from typing import Any, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

FORM = "HOLDFAST_LOG"  # environment variable: "json", or anything else for text
FRAMES = 3  # between who says it and the standard library: vLLM's lines name the file and line of who says it

_as_json = structlog.processors.JSONRenderer(default=str)
_as_text = structlog.processors.LogfmtRenderer(bool_as_flag=False)


def logger(name: str = "") -> FilteringBoundLogger:
    """Of a part of the plugin: "worker", say; it is "vllm.holdfast.worker" to the standard library."""
    wrapped = structlog.wrap_logger(
        logging.getLogger(f"vllm.holdfast.{name}" if name else "vllm.holdfast"),
        processors=[_render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),  # the standard library's levels hold
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast(FilteringBoundLogger, wrapped)


def _render(log: WrappedLogger, method: str, event: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    name = str(event.pop("event"))
    if os.environ.get(FORM) == "json":
        said = _as_json(log, method, {"event": name, **event})
        text = said if isinstance(said, str) else said.decode()
    else:
        text = f"{name} {_as_text(log, method, _printable(event))}" if event else name
    return (text,), {"stacklevel": FRAMES}


def _printable(event: EventDict) -> EventDict:
    """A client names its requests: no line of it begins another one, or moves a terminal's cursor."""
    said = {key: value if value is None or isinstance(value, bool) else str(value) for key, value in event.items()}
    return {
        key: value.encode("unicode_escape").decode() if isinstance(value, str) and not value.isprintable() else value
        for key, value in said.items()
    }
