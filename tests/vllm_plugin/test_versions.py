"""Which vLLM is started with, by its version and by what it has; this environment's among them."""

import pytest
import vllm

from vllm_plugin import versions
from vllm_plugin.versions import CONNECTOR, SCHEDULER, TRIED, WORKER, judge, missing_of

SCHEDULER_CLASS = "vllm.v1.core.sched.scheduler:Scheduler"


@pytest.mark.parametrize("version", [*TRIED, "0.30.1", "0.32.0+cpu", "0.31.2.dev3"])
def test_what_was_tried_starts_and_nothing_is_said(version):
    """Nor of what lies between."""
    assert judge(version, []) == ([], "")


@pytest.mark.parametrize("version", ["0.29.0", "0.9.2", "0.20.1"])
def test_what_is_too_old_is_refused_in_one_line(version):
    """Whatever it has. By numbers, not by letters."""
    (line,), warning = judge(version, [])
    assert f"vLLM {version}" in line
    assert f"{', '.join(TRIED)}: install" in line
    assert not warning


@pytest.mark.parametrize("version", ["0.33.0", "1.0.0", "0.1.dev7+g1234567", "dev"])
def test_what_is_newer_or_of_a_commit_starts_with_a_warning(version):
    """If it has all hooks."""
    refusals, warning = judge(version, [])
    assert refusals == []
    assert version in warning
    assert ", ".join(TRIED) in warning


@pytest.mark.parametrize("version", ["0.32.0", "0.33.0", "dev"])
def test_what_has_not_all_hooks_is_refused_by_their_names(version):
    """Tried or not: whoever changed it."""
    (line,), _ = judge(version, ["Scheduler.gone(request)", "BlockPool.other()"])
    assert "Scheduler.gone(request), BlockPool.other()" in line
    assert ", ".join(TRIED) in line


def test_this_vllm_has_all_of_them():
    """The environment that these tests run in."""
    assert missing_of(CONNECTOR, SCHEDULER, WORKER) == []
    assert judge(vllm.__version__, []).refusals == []


@pytest.mark.parametrize(("hooks", "missing"), [
    ({SCHEDULER_CLASS: {"update_from_outputs": []}}, ["Scheduler.update_from_outputs()"]),
    ({SCHEDULER_CLASS: {"update_from_output": ["model_runner_output"]}},
     ["Scheduler.update_from_output(model_runner_output)"]),
    ({"vllm.v1.core.sched.scheduler:Schedule": {"x": []}}, ["Schedule.x()"]),
    ({"vllm.v1.core.schedule:Scheduler": {"x": ["y"]}}, ["Scheduler.x(y)"]),
])  # fmt: skip
def test_what_was_renamed_is_missed(hooks, missing):
    """A method, a parameter, a class, a module."""
    assert missing_of(hooks) == missing


def test_every_hook_that_is_overridden_is_among_them(monkeypatch):
    """What vLLM does not call any more would protect nothing."""
    from vllm_plugin.connector import HoldfastConnector

    (names,) = (set(named) for named in versions.CONNECTOR.values())
    own = {"join", "hear", "emitted", "others_may_not", "status", "scrub", "given_up"}
    may_be_missed = {"request_finished_all_groups", "wait_for_layer_load", "save_kv_layer", "build_kv_connector_stats",
                     "build_prom_metrics", "requires_kv_delivery"}  # fmt: skip
    defined = {name for name in vars(HoldfastConnector) if not name.startswith("_")}
    assert defined - own - may_be_missed == names
