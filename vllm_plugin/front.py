"""The API server's part of sessions: what a request says of its own is looked at before an engine has to do with it."""

from collections.abc import Callable
from typing import Any

from vllm_plugin import logs
from vllm_plugin.whose import refused
from vllm_plugin.wrapping import wrap

log = logs.logger("front")


def check_sessions() -> None:
    """From now on, a request whose session or generation cannot be is answered with 400, and with the field."""
    from vllm.v1.engine.input_processor import InputProcessor

    if hasattr(InputProcessor, "_validate_params"):
        wrap(InputProcessor, "_validate_params", _validated)
    else:  # such a request is nobody's then, and its pages are stored as such
        log.warning("holdfast.sessions_unchecked", why="vLLM's InputProcessor has no _validate_params")


def _validated(original: Callable[..., Any], self: Any, params: Any, *args: Any, **kw: Any) -> Any:
    from vllm.exceptions import VLLMValidationError

    found = refused((getattr(params, "extra_args", None) or {}).get("kv_transfer_params"))
    if found is not None:
        field = f"kv_transfer_params.{found.field}"
        raise VLLMValidationError(f"{field}: {found.why}", parameter=field)
    return original(self, params, *args, **kw)
