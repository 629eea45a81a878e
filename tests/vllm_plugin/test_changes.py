"""Which ways of changing weights are known, and that each of them is told."""

import sys
from types import ModuleType

import pytest

from loadtests.gameday import page_hand
from vllm_plugin.fingerprint import CALLS, Call, Reason, WaysAbsent, absent, watch_all, watch_weight_changes
from vllm_plugin.fingerprint.changes import IN_GAME_DAYS, SECRET_FILE

MODULE = "tests.made_up_worker"
MADE_UP = (
    Call(MODULE, "Worker", "load_model"),
    Call(MODULE, "Worker", "start_weight_update", whole=False),
    Call(MODULE, "Worker", "add_lora", "adapter"),
    Call(MODULE, "Worker", "wake_up", tagged=True),
    Call(MODULE, "Core", "collective_rpc", harmless=frozenset({"list_loras"})),
    Call(MODULE, "", "move"),
)


@pytest.fixture
def vllm(monkeypatch):
    """A module with such classes, as vLLM's are."""

    class Base:
        def load_model(self, *, dummy=False):
            """Load."""
            return "loaded", dummy

    class Worker(Base):
        def start_weight_update(self):
            raise RuntimeError("half of them are new")

        def add_lora(self, request):
            return True

        def wake_up(self, tags=None):
            return tags

    class Core:
        def collective_rpc(self, method, timeout=None):
            return method

    module = ModuleType(MODULE)
    module.Base, module.Worker, module.Core, module.move = Base, Worker, Core, lambda: "moved"
    monkeypatch.setitem(sys.modules, MODULE, module)
    return module


@pytest.fixture
def heard():
    return []


def test_each_way_is_told_after_it_was_gone(vllm, heard):
    """With what it gave back, as it was called; inherited ones too."""
    watch_weight_changes(vllm.Worker, heard.append, MADE_UP)
    worker = vllm.Worker()

    assert worker.load_model(dummy=True) == ("loaded", True)
    assert worker.add_lora(1)

    assert heard == [
        Reason("Worker.load_model", "weights", True, False), Reason("Worker.add_lora", "adapter", True, False),
    ]  # fmt: skip
    assert [str(one) for one in heard] == ["Worker.load_model: weights, done", "Worker.add_lora: adapter, done"]
    assert vllm.Worker.load_model.__doc__ == "Load."


def test_it_is_told_after_and_not_before(vllm):
    """Who reads the weights anew when told must read the new ones."""
    state, seen = [], []
    vllm.Worker.load_model = lambda self: state.append("new")
    watch_weight_changes(vllm.Worker, lambda reason: seen.append(list(state)), MADE_UP)
    vllm.Worker().load_model()

    assert seen == [["new"]]


def test_a_way_that_failed_is_told_as_well(vllm, heard):
    """Half of the weights may be new. The error goes on as it was."""
    watch_weight_changes(vllm.Worker, heard.append, MADE_UP)

    with pytest.raises(RuntimeError, match="half of them"):
        vllm.Worker().start_weight_update()

    assert heard == [Reason("Worker.start_weight_update", "weights", False, True)]
    assert str(heard[0]) == "Worker.start_weight_update: weights, failed"


def test_calls_that_look_are_not_told(vllm, heard):
    """Of those that may do anything only the known ones are harmless; functions that were sent never are."""
    watch_weight_changes(vllm.Core, heard.append, MADE_UP)
    core = vllm.Core()

    core.collective_rpc("list_loras")
    core.collective_rpc(method="list_loras", timeout=1.0)
    assert heard == []
    for method in ("unknown", len, b"list_loras"):
        core.collective_rpc(method)
    assert len(heard) == 3


@pytest.mark.parametrize("set_to", [None, "", "/a/file"])
def test_what_damages_pages_is_believed_only_in_a_game_day(vllm, heard, monkeypatch, set_to):
    """Elsewhere methods of these names may do anything."""
    monkeypatch.delenv(SECRET_FILE, raising=False)
    if set_to is not None:
        monkeypatch.setenv(SECRET_FILE, set_to)
    (call,) = [one._replace(module=MODULE, owner="Core") for one in CALLS if one.method == "collective_rpc"]
    watch_weight_changes(vllm.Core, heard.append, [call])

    for method in IN_GAME_DAYS:
        vllm.Core().collective_rpc(method)
    vllm.Core().collective_rpc("holdfast_status")

    assert len(heard) == (0 if set_to else 3)


def test_game_days_say_by_the_same_name_that_they_are_some():
    """And the methods are theirs."""
    assert SECRET_FILE == page_hand.SECRET_FILE
    assert all(callable(getattr(page_hand.PageHand, one)) for one in IN_GAME_DAYS)


def test_waking_other_memory_is_not_told(vllm, heard):
    """While weights still sleep their memory must not be read."""
    watch_weight_changes(vllm.Worker, heard.append, MADE_UP)
    worker = vllm.Worker()

    worker.wake_up(["kv_cache"])
    worker.wake_up(tags=["scheduling"])
    assert heard == []
    worker.wake_up()
    worker.wake_up(["weights"])
    worker.wake_up(tags=("kv_cache", "weights"))
    assert len(heard) == 3


def test_twice_watched_is_told_once(vllm, heard):
    """General plugins are loaded several times in a process. Two who listen both hear."""
    also = []
    on_change = heard.append
    for _ in range(2):
        watch_weight_changes(vllm.Worker, on_change, MADE_UP)
    watch_weight_changes(vllm.Worker, also.append, MADE_UP)
    vllm.Worker().load_model()

    assert (len(heard), len(also)) == (1, 1)


def test_all_are_watched_and_let_go(vllm, heard):
    """Those of several classes, and functions of modules; afterwards nobody hears of them."""
    undo = watch_all(heard.append, MADE_UP)
    for _ in range(2):
        vllm.Worker().load_model()
        vllm.Core().collective_rpc("anything")
        assert vllm.move() == "moved"
        undo()

    assert [reason.call for reason in heard] == ["Worker.load_model", "Core.collective_rpc", "made_up_worker.move"]


def test_ways_that_are_not_there_are_refused_by_name(vllm, heard):
    """A version that renamed one would change weights unseen; then none is watched, so that nobody relies on it."""
    gone = (*MADE_UP, Call(MODULE, "Worker", "gone"), Call(MODULE, "Nobody", "at_all"))
    sys.modules[MODULE].Worker.not_callable = 1

    assert absent(MADE_UP) == []
    assert len(absent(gone)) == 2
    with pytest.raises(WaysAbsent, match=r"Worker\.gone is not in .*Nobody\.at_all"):
        watch_all(heard.append, gone)
    with pytest.raises(WaysAbsent, match=r"Worker\.gone"):
        watch_weight_changes(vllm.Worker, heard.append, gone)
    vllm.Worker().load_model()
    assert heard == []


def test_a_module_that_is_not_there_is_said(monkeypatch):
    """In one line, as the rest."""
    (line,) = absent([Call("vllm_plugin.no_such_module", "Worker", "load_model")])

    assert line.startswith("Worker.load_model is not there: No module named")


def test_the_list_has_no_way_twice():
    """And says of each what it changes."""
    names = [(call.module, call.owner, call.method) for call in CALLS]

    assert len(set(names)) == len(names) >= 25
    assert {call.changes for call in CALLS} == {"weights", "adapter"}
