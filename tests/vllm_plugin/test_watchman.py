"""The watchman finds what nobody announced, and nothing else."""

import gc
import weakref

import pytest
import torch
from torch import nn

from tests.vllm_plugin.models import SLICE_BYTES, Model, bits, flip, read
from vllm_plugin.fingerprint import Generation, Pace, Watchman


class Clock:
    """Time that passes only when it is looked at, a little each time."""

    def __init__(self, tick_s: float = 0.001) -> None:
        self.now_s, self.tick_s = 100.0, tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def generation() -> Generation:
    return Generation()


def watchman(model: nn.Module, generation: Generation, clock=None, **pace) -> Watchman:
    """One that reads a slice per step, and rests for as long as it worked."""
    paced = Pace(**{"step_s": 0.0, "share": 1.0, "slice_bytes": SLICE_BYTES} | pace)
    return Watchman({"": model}, read(model), generation, paced, clock or Clock(0.0))


def cycle(watching: Watchman, steps_max: int = 1000) -> list:
    """Steps until a cycle has ended; what was told in them."""
    before, found = watching.last, []
    for _ in range(steps_max):
        found += watching.step()
        if watching.last is not before:
            return found
    raise AssertionError("no cycle ended")


def test_a_silently_changed_byte_of_any_weight_is_found_within_a_cycle(model, generation):
    """By `p.data.copy_`, which leaves `_version` as it was. It is named, with the slice; again in each cycle."""
    watching = watchman(model, generation)
    cycle(watching)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.numel():
            continue
        right, version = tensor.detach().clone(), tensor._version
        wrong = right.clone(memory_format=torch.contiguous_format)
        flip(wrong, wrong.numel() - 1, 0)
        tensor.data.copy_(wrong)
        assert tensor._version == version

        found = cycle(watching)

        at = (tensor.numel() * tensor.element_size() - 1) // SLICE_BYTES * SLICE_BYTES
        assert [(one.name, one.first, one.why) for one in found] == [(name, at, "other contents")]
        assert cycle(watching) == found == list(watching.last.differences)
        tensor.data.copy_(right)
        assert cycle(watching) == []


def test_no_alarm_without_a_change_over_many_cycles(model, generation):
    """Also while steps write pages, and with changes that were announced and read in between."""
    watching = watchman(model, generation)
    for number in range(60):
        model.attention.kv_cache += 1
        assert watching.step() == []
        if number % 7 == 0:
            flip(model.weight("packed"), number, 3)
            generation.announce()
            assert watching.step() == []
            watching.renew(read(model))
        assert cycle(watching) == []
    assert watching.last.number == 60


def test_an_announced_change_is_no_difference_until_it_is_read_anew(model, generation):
    """Nothing is compared from the announcement on, and while it goes on; afterwards with what was read then."""
    watching = watchman(model, generation)
    cycle(watching)
    number = watching.last.number
    generation.announce(whole=False)
    flip(model.weight("odd"), 0, 0)

    assert watching.stale
    assert all(watching.step() == [] for _ in range(100))
    assert watching.last.number == number
    watching.renew(read(model))
    assert watching.stale
    generation.announce()
    watching.renew(read(model))
    assert not watching.stale
    assert cycle(watching) == []
    flip(model.weight("odd"), 0, 0)
    assert [one.name for one in cycle(watching)] == ["layers.odd.weight"]


def test_what_was_read_while_it_was_announced_does_not_count(model, generation, monkeypatch):
    """A change that begins in the middle of a step, on another thread."""
    from vllm_plugin.fingerprint import watchman as module

    watching, right = watchman(model, generation), module.slice_sums

    def meanwhile(contents, first, end):
        flip(model.weight("embed"), 0, 0)
        generation.announce()
        return right(contents, first, end)

    monkeypatch.setattr(module, "slice_sums", meanwhile)

    found = [watching.step() for _ in range(20)]

    assert found == [[]] * 20
    assert generation.number == 1


def test_weights_that_are_gone_new_or_of_another_form_differ(model, generation):
    """Each is told as a whole."""
    watching = watchman(model, generation)
    model.layers["scale"].weight = nn.Parameter(torch.zeros(2), requires_grad=False)
    model.layers["packed"].weight = nn.Parameter(torch.zeros(2, device="meta"), requires_grad=False)
    del model.mask
    model.layers["added"] = nn.Linear(2, 2, bias=False)
    cycle(watching)

    found = {one.name: one.why for one in cycle(watching)}

    assert found.pop("layers.packed.weight").startswith("a tensor without contents")
    assert found == {
        "layers.added.weight": "new",
        "mask": "gone",
        "layers.scale.weight": "float32 (2,), was float32 ()",
    }


def test_a_weight_that_silently_became_another_ones_memory_is_found(model, generation):
    """Tied weights are compared once: but not those that were not tied when they were read."""
    watching = watchman(model, generation)
    model.weight("same_form_2").data = model.weight("same_form_1").data

    assert [one.name for one in cycle(watching)] == ["layers.same_form_2.weight"]


def test_tied_weights_are_compared_once(model, generation):
    """A cycle's bytes are those of the reading."""
    watching = watchman(model, generation)
    cycle(watching)

    assert watching.last.read_bytes == read(model).read_bytes


def test_it_holds_neither_tensors_nor_model(generation):
    """What is replaced can go, and the model too: then all of it is gone, which is a difference, no error."""
    model = Model()
    watching = watchman(model, generation)
    cycle(watching)
    watching.step()
    tensor = weakref.ref(model.weight("odd"))
    model.layers["odd"].weight = nn.Parameter(model.weight("odd").detach().clone(), requires_grad=False)
    gc.collect()
    assert tensor() is None
    assert cycle(watching) == []
    whole = weakref.ref(model)
    names = set(read(model).forms)
    del model
    gc.collect()

    assert whole() is None
    assert {one.name for one in cycle(watching)} == names
    assert {one.why for one in cycle(watching)} == {"gone"}


def test_the_time_it_was_last_right_is_told(model, generation):
    """What was computed since then is not to be trusted: from before that slice was read the last time."""
    clock = Clock()
    watching = watchman(model, generation, clock)
    before = clock.now_s
    cycle(watching)
    between = clock.now_s
    flip(model.weight("float8"), 0, 0)

    (found,) = cycle(watching)
    (again,) = cycle(watching)

    assert before < found.right_at < between
    assert again.right_at == found.right_at


def large() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(bits(64, SLICE_BYTES // 4, dtype=torch.float32), requires_grad=False)
    return model


def a_millisecond_each(clock, monkeypatch) -> list[int]:
    """Have each slice that is read take one. Returns where their sizes will be noted."""
    from vllm_plugin.fingerprint import watchman as module

    right, read_of = module.slice_sums, []

    def counted(contents, first, end):
        clock.now_s += 0.001
        read_of.append(end - first)
        return right(contents, first, end)

    monkeypatch.setattr(module, "slice_sums", counted)
    return read_of


def test_a_step_reads_a_slice_and_no_more_once_its_time_is_up(generation, monkeypatch):
    """With all the time there is, as many slices as fit: here four look-ups of the clock each."""
    clock = Clock(0.0)
    model = large()
    read_of = a_millisecond_each(clock, monkeypatch)
    for step_s, slices in ((0.0, 1), (0.0035, 4), (0.0095, 10)):
        watching = Watchman({"": model}, read(model), generation, Pace(step_s, 1.0, SLICE_BYTES), clock)
        read_of.clear()
        watching.step()
        assert read_of == [SLICE_BYTES] * slices


def test_it_takes_its_share_of_the_time_and_no_more(generation, monkeypatch):
    """Steps of a millisecond, of which a slice takes one: with a tenth it reads in every tenth of them."""
    clock = Clock(0.0)
    model = large()
    count = a_millisecond_each(clock, monkeypatch)
    watching = Watchman({"": model}, read(model), generation, Pace(0.0, 0.1, SLICE_BYTES), clock)
    begun = clock.now_s
    while watching.last is None:
        watching.step()
        clock.now_s += 0.001

    assert len(count) == 64
    assert watching.last.busy_s == pytest.approx(0.064)
    assert 0.063 / 0.1 <= clock.now_s - begun <= 0.064 / 0.1 + 0.070
    assert watching.cycle_s == pytest.approx(0.64)
    assert (watching.last.number, watching.last.steps, watching.last.read_bytes) == (1, 64, 64 * SLICE_BYTES)


@pytest.mark.parametrize(
    "pace", [{"step_s": -1.0}, {"share": 0.0}, {"share": 1.5}, {"slice_bytes": 100}, {"slice_bytes": 0}]
)
def test_a_pace_that_is_none_is_refused(pace):
    """It says what it must be."""
    with pytest.raises(ValueError, match="multiple of 16384"):
        Pace(**pace)
