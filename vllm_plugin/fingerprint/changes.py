"""All ways in which vLLM changes weights, as data, and how they are watched. vLLM is imported by name, if at all.

What is here was read in vLLM 0.32. `absent` is asked at start: a version that renamed a way has weights that change
without anybody saying so, and that must be seen before it matters. What no list can hold (a plugin that writes to
`param.data`) is found by the `Watchman`.
"""

import importlib
import os
import re
from collections.abc import Callable, Sequence
from functools import wraps
from types import ModuleType
from typing import Any, NamedTuple

WEIGHTS, ADAPTER = "weights", "adapter"


class Call(NamedTuple):
    """One way. owner: a class of the module; empty for a function of the module itself.

    changes: WEIGHTS or ADAPTER. whole: whether the weights are whole when it has returned; else more is to come, and
        until then no page is of any model. harmless: first arguments with which it changes nothing. in_game_days: more
        of these, while SECRET_FILE is set. tagged: whether it says by tags which memory it is about, so that without
        "weights" among them it changes nothing. since: the version of vLLM that brought it.
    """

    module: str
    owner: str
    method: str
    changes: str = WEIGHTS
    whole: bool = True
    harmless: frozenset[str] = frozenset()
    in_game_days: frozenset[str] = frozenset()
    tagged: bool = False
    since: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """As people say it: Worker.load_model."""
        return f"{self.owner or self.module.rpartition('.')[2]}.{self.method}"


class Reason(NamedTuple):
    """Why the weights may be others now. raised: the call failed, and may have changed half of them."""

    call: str
    changes: str
    whole: bool
    raised: bool

    def __str__(self) -> str:
        state = "failed" if self.raised else "done" if self.whole else "begun"
        return f"{self.call}: {self.changes}, {state}"


WORKER, CORE = "vllm.v1.worker.gpu_worker", "vllm.v1.engine.core"
ADAPTERS, EXPERTS = "vllm.lora.model_manager", "vllm.distributed.eplb.eplb_state"
# Methods of workers that look, or that are in this list themselves. All others that are called so, also functions that
# somebody sent, may do anything.
HARMLESS = frozenset({
    "check_health", "compute_weight_checksums", "get_model_inspection", "get_supported_tasks", "holdfast_scrub",
    "holdfast_status", "list_loras", "profile", "reset_encoder_cache", "reset_mm_cache", "save_sharded_state",
    "supports_draft_weight_updates", "synchronize_device",
})  # fmt: skip
# Those of the worker extension of game days (loadtests/gameday), which touch pages alone. Elsewhere an extension with
# methods of these names is anybody's.
IN_GAME_DAYS = frozenset({"holdfast_damage", "holdfast_damage_held", "holdfast_held"})
SECRET_FILE = "HOLDFAST_GAMEDAY_SECRET_FILE"  # environment variable of a server that is in a game day
CALLS = (
    # 1. The worker's own: in its process. CPUWorker's sleep, wake_up and discard do nothing, and are not here.
    Call(WORKER, "Worker", "load_model"),
    Call(WORKER, "Worker", "reload_weights"),
    Call(WORKER, "Worker", "reset_weights", since=(0, 32)),
    Call(WORKER, "Worker", "start_weight_update", whole=False),
    Call(WORKER, "Worker", "start_draft_weight_update", whole=False),
    Call(WORKER, "Worker", "update_weights", whole=False),
    Call(WORKER, "Worker", "finish_weight_update"),
    Call(WORKER, "Worker", "sleep", whole=False),
    Call(WORKER, "Worker", "discard", whole=False, tagged=True, since=(0, 31)),
    Call(WORKER, "Worker", "wake_up", tagged=True),  # after sleep's level 2 they are any bits, until they are reloaded
    Call(WORKER, "Worker", "checkpoint_restore"),
    Call(WORKER, "Worker", "update_config"),
    Call(WORKER, "Worker", "elastic_ep_execute"),
    Call(WORKER, "Worker", "apply_model"),  # any function, given the model
    # 2. Experts that are moved between ranks while requests run: at once, or one layer after the other.
    Call(EXPERTS, "EplbState", "rearrange"),
    Call(EXPERTS, "", "_move_to_workspace"),
    # 3. Adapters. Requests load them too, in a step: what registers them sees all, and only when they are really new.
    Call(WORKER, "Worker", "add_lora", ADAPTER),
    Call(WORKER, "Worker", "remove_lora", ADAPTER),
    Call(WORKER, "Worker", "pin_lora", ADAPTER),
    Call(ADAPTERS, "LoRAModelManager", "_add_adapter", ADAPTER),
    Call(ADAPTERS, "LoRAModelManager", "remove_adapter", ADAPTER),
    Call(ADAPTERS, "LoRAModelManager", "remove_all_adapters", ADAPTER),
    # 4. The engine's: in its process, for the scheduler's half, which hears of the others only a step later.
    Call(CORE, "EngineCore", "collective_rpc", harmless=HARMLESS, in_game_days=IN_GAME_DAYS),
    Call(CORE, "EngineCore", "sleep", whole=False),
    Call(CORE, "EngineCore", "wake_up", tagged=True),
    Call(CORE, "EngineCore", "set_weight_version"),
    Call(CORE, "EngineCore", "add_lora", ADAPTER),
    Call(CORE, "EngineCore", "remove_lora", ADAPTER),
    Call(CORE, "EngineCore", "pin_lora", ADAPTER),
)

OnChange = Callable[[Reason], None]


class WaysAbsent(RuntimeError):
    """vLLM has other ways than those that are known here; says which are not there."""


def absent(calls: Sequence[Call] = CALLS) -> list[str]:
    """One line for each way that this vLLM should have and does not: weights could then change unseen."""
    return [line for call in _of_this_version(calls) if (line := _absent(call))]


def watch_all(on_change: OnChange, calls: Sequence[Call] = CALLS) -> Callable[[], None]:
    """Watch all of them; returns what undoes it. Raises WaysAbsent, and watches none, when one is not there."""
    if lines := absent(calls):
        raise WaysAbsent("; ".join(lines))
    undo = [watch_weight_changes(_owner(call), on_change, [call]) for call in _of_this_version(calls)]

    def undo_all() -> None:
        for one in undo:
            one()

    return undo_all


def watch_weight_changes(
    owner: type | ModuleType, on_change: OnChange, calls: Sequence[Call] = CALLS
) -> Callable[[], None]:
    """Call `on_change` after each call of these methods of a class, or functions of a module, also when it raised.

    calls: those of another class are left out. Twice with the same `on_change` is once. What is wrapped is what this
    class has, also where it inherited it: an override in a class below it is not seen, unless that is given too.

    Returns what undoes it. Raises WaysAbsent when a method is not there.
    """
    name = "" if isinstance(owner, ModuleType) else owner.__name__
    mine = [call for call in calls if call.owner == name]
    if lines := [f"{call.name} is not there" for call in mine if not callable(getattr(owner, call.method, None))]:
        raise WaysAbsent("; ".join(lines))
    for call in mine:
        now = getattr(owner, call.method)
        if not hasattr(now, "_on_changes"):
            setattr(owner, call.method, _watched(now, call))
        heard: list[OnChange] = getattr(owner, call.method)._on_changes
        if on_change not in heard:
            heard.append(on_change)

    def undo() -> None:
        for call in mine:
            heard = getattr(getattr(owner, call.method), "_on_changes", [])
            if on_change in heard:
                heard.remove(on_change)

    return undo


def _watched(method: Callable[..., Any], call: Call) -> Callable[..., Any]:
    heard: list[OnChange] = []

    @wraps(method)
    def watched(*args: Any, **kwargs: Any) -> Any:
        raised = True
        try:
            result = method(*args, **kwargs)
            raised = False
            return result
        finally:
            if not _is_harmless(call, args[1:], kwargs):
                reason = Reason(call.name, call.changes, call.whole and not raised, raised)
                for on_change in tuple(heard):
                    on_change(reason)

    watched._on_changes = heard  # type: ignore[attr-defined]
    return watched


def _is_harmless(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if call.tagged:
        tags = args[0] if args else kwargs.get("tags")
        return tags is not None and WEIGHTS not in tags
    first = args[0] if args else kwargs.get("method")
    if not isinstance(first, str):
        return False
    return first in call.harmless or (first in call.in_game_days and bool(os.environ.get(SECRET_FILE)))


def _of_this_version(calls: Sequence[Call]) -> list[Call]:
    """Those that this vLLM has, if it is what it is called; all, where nobody can tell."""
    version = re.match(r"(\d+)\.(\d+)\.\d", importlib.import_module("vllm").__version__)
    release = (int(version[1]), int(version[2])) if version else None
    return [call for call in calls if release is None or release >= call.since]


def _owner(call: Call) -> Any:
    module = importlib.import_module(call.module)
    return getattr(module, call.owner, None) if call.owner else module


def _absent(call: Call) -> str | None:
    try:
        owner = _owner(call)
    except ImportError as error:
        return f"{call.name} is not there: {error}"
    if owner is None or not callable(getattr(owner, call.method, None)):
        return f"{call.name} is not in {call.module}: weights could change there unseen"
    return None
