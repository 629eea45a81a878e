"""What is served is what was read, until something says otherwise."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from tests.vllm_plugin.models import Model, facts, flip
from vllm_plugin import served as served_module
from vllm_plugin.fingerprint import FINGERPRINT_BYTES, Reason
from vllm_plugin.served import Named, Served

DONE, BEGUN = Reason("Worker.load_model", "weights", True, False), Reason("Worker.sleep", "weights", False, False)


class World:
    """A model, and adapters of this step's requests by name."""

    def __init__(self, **options) -> None:
        self.model = Model()
        self.adapters: dict[str, object] = {}
        self.now_s, self.readings = 100.0, 0
        self.served = Served(
            self._models, facts(), adapters=lambda: self.adapters.items(), clock=self._time, **options
        )

    def _models(self) -> dict[str, object]:
        self.readings += 1
        return {"": self.model}

    def _time(self) -> float:
        self.now_s += 0.001
        return self.now_s

    def change(self, name: str = "packed") -> None:
        flip(self.model.weight(name), 5, 3)


class Adapter:
    """As vLLM keeps one while it is loaded."""

    def __init__(self, loras: dict[str, object]) -> None:
        self.loras = loras


def adapter(value: float) -> object:
    layer = SimpleNamespace(lora_a=torch.full((4, 8), value), lora_b=torch.ones(8, 4), scaling=1.0, rank=4)
    return Adapter({"layers.0.q": layer})


def test_nothing_is_read_while_nobody_says_anything():
    """A step costs nothing, and what is served stays what it was."""
    world = World()
    before = world.served.id
    world.change()

    assert not world.served.look()
    assert world.served.watch() is None
    assert (world.served.id, world.served.changes) == (before, 0)
    assert len(before) == FINGERPRINT_BYTES


def test_announced_weights_are_read_before_the_next_step():
    """Another id, once; and the first one again with the first weights."""
    world = World()
    first = world.served.id
    world.change()
    world.served.announce(DONE)

    assert world.served.look()
    second = world.served.id
    assert second != first
    assert not world.served.look()
    world.change()
    assert world.served.look(again=True)
    assert world.served.id == first
    assert world.served.changes == 2


def test_the_same_weights_again_are_no_other_model():
    """A reload of what was there, or a call that changed nothing, voids nothing."""
    world = World()
    world.served.announce(DONE)

    assert not world.served.look()
    assert not world.served.look(again=True)
    assert world.served.changes == 0


def test_while_weights_are_not_whole_they_are_of_no_model():
    """Each step of the change has an id that nothing had before; what is computed then is found by nobody."""
    world = World()
    first = world.served.id
    seen = {first}
    for _ in range(3):
        world.served.announce(BEGUN)
        assert world.served.look()
        assert not world.served.settled
        assert not world.served.look(again=True)
        seen.add(world.served.id)
    assert len(seen) == 4
    assert world.readings == 1  # there is nothing whole to read

    world.served.announce(DONE)
    assert world.served.look()
    assert (world.served.settled, world.served.id) == (True, first)


def test_weights_that_cannot_be_read_are_of_no_model_until_they_can():
    """A server that runs is not stopped by it."""
    world = World()
    first = world.served.id
    right, world.model.layers["odd"].weight = world.model.layers["odd"].weight, torch.nn.Parameter(
        torch.empty(4, device="meta"), requires_grad=False
    )  # fmt: skip
    assert world.served.look(again=True)
    assert not world.served.settled
    world.model.layers["odd"].weight = right
    assert world.served.look(again=True)
    assert (world.served.settled, world.served.id) == (True, first)


def test_an_adapter_that_vllm_let_go_is_let_go():
    """Its contents are remembered, and not its memory, of which there are gigabytes where adapters come and go."""
    world = World()
    world.adapters = {"a": adapter(1.0)}
    world.served.look()
    gone = weakref.ref(world.adapters.pop("a"))
    gc.collect()
    assert gone() is None

    world.adapters = {"a": adapter(1.0)}
    assert not world.served.look()
    world.adapters = {"a": adapter(2.0)}
    assert world.served.look()


def test_an_adapter_that_is_loaded_is_not_another_model_of_weights():
    """What is announced of adapters is looked at when a request has one."""
    world = World()
    world.served.announce(Reason("Worker.add_lora", "adapter", False, True))

    assert not world.served.look()
    assert world.served.settled


def test_a_name_that_comes_to_stand_for_another_adapter_voids_pages():
    """Hashes of blocks know its name and path. The same contents again, or another name, void nothing."""
    world = World()
    world.adapters = {"a": adapter(1.0)}
    assert not world.served.look()
    world.adapters = {"a": adapter(1.0), "b": adapter(2.0)}
    assert not world.served.look()
    world.adapters = {}
    assert not world.served.look()
    world.adapters = {"a": adapter(3.0)}
    assert world.served.look()
    assert not world.served.look()


def test_of_too_many_adapters_none_is_believed(monkeypatch):
    """What was forgotten could come back as another: so nothing of before is used."""
    monkeypatch.setattr(served_module, "ADAPTERS_MAX", 2)
    world = World()
    world.adapters = {"a": adapter(1.0), "b": adapter(2.0)}
    assert not world.served.look()
    world.adapters = {"c": adapter(3.0)}
    assert world.served.look()
    assert not world.served.look()


def test_the_watchman_finds_what_nobody_announced_and_says_since_when():
    """By itself, within a cycle; once."""
    world = World(watch_share=1.0)
    before, begun_s = world.served.id, world.now_s
    for _ in range(20):
        assert world.served.watch() is None
    world.change()
    changed_s = world.now_s
    found = [since for _ in range(50) if (since := world.served.watch()) is not None]

    assert len(found) == 1
    assert begun_s - 1 < found[0] <= changed_s
    assert world.served.id != before
    assert world.served.changes == 1
    assert not world.served.look()
    assert world.served.cycle_s > 0


def test_an_announced_change_is_not_the_watchmans():
    """It compares with what was read after it."""
    world = World(watch_share=1.0)
    world.change()
    world.served.announce(DONE)
    assert world.served.watch() is None
    assert world.served.look()
    for _ in range(50):
        assert world.served.watch() is None


def test_without_a_share_nobody_watches():
    """And no cycle is told."""
    assert World().served.cycle_s is None


@pytest.mark.parametrize("reason", [DONE, BEGUN])
def test_what_is_bound_by_name_only_never_changes(reason):
    """It was said that it does not."""
    named = Named(facts(), 0, 1)
    before = named.id
    named.announce(reason)

    assert not named.look(again=True)
    assert named.watch() is None
    assert (named.id, named.settled) == (before, True)
    assert Named(facts(engine="0.33.0"), 0, 1).id != before
