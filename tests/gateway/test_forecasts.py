"""What is predicted of each replica, what it learns by, and that nothing is left ahead of others when requests end."""

from typing import Any

import pytest

from gateway.fleet.gauges import Gauges
from gateway.fleet.listener import Listener
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Care, Fleet
from gateway.forecasts import COLD_MAX, LEARNT_PER_S, NEAR_MAX, STALE_S, Forecast, Forecasts, Look, Prompts
from guards.health import Health
from guards.prediction import FIRST_TOKEN

UP, GONE = Health(up=True, why="answers"), Health(up=False, why="cannot be reached", gone=True)
ENOUGH = 40  # outcomes after which a prediction is no guess any more


async def _nobody(*asked: object) -> Any:
    raise AssertionError("nobody is asked here")


class World:
    """Replicas a, b, ... of model m, and a clock that is set by hand."""

    def __init__(self, names: str = "a") -> None:
        self.now_s = 1000.0
        self.fleet = Fleet(
            [Replica(name, model="m", health=UP) for name in names], _nobody, Listener(), Care(1.0, 1.0), self.clock
        )
        self.forecasts = Forecasts(self.fleet, self.clock)

    def clock(self) -> float:
        return self.now_s

    def sent(self, name: str = "a", tokens: int = 1000, near: int | None = None, **more: Any) -> Forecast:
        return self.forecasts.sent(name, tokens, near, **{"shared": tokens} | more)

    def ahead(self, name: str = "a") -> int:
        return self.forecasts.of(name).prompts.ahead

    def predicted(self, name: str | None = "a", tokens: int = 1000, near: int | None = None) -> float:
        return self.forecasts.first_token_s(name, "m", tokens, near)

    def serve(self, name: str, first_s: float, between_s: float = 0.0, answer: int = 1, **more: Any) -> Forecast:
        """A request from beginning to end."""
        one = self.sent(name, **more)
        self.fleet.enter(name)
        self.now_s += first_s
        one.first()
        self.now_s += between_s * (answer - 1)
        one.over(tokens=answer, whole=True, left=False)
        self.fleet.leave(name)
        return one


def test_what_is_sent_is_ahead_of_others_until_its_first_token_comes():
    """And is not taken away twice: by the token, by its end, by a second one."""
    world = World()
    one, other = world.sent(tokens=1000), world.sent(tokens=300)
    both = world.ahead()

    one.first()
    one.first()
    after_first = world.ahead()
    one.over(tokens=7, whole=True, left=False)
    other.over(tokens=0, whole=False, left=True)
    other.over(tokens=0, whole=False, left=True)

    assert (both, after_first, world.ahead()) == (1300, 300, 0)


def test_who_comes_behind_others_is_expected_to_wait_for_them():
    """The more is to be computed before, the longer."""
    world = World()
    alone = world.predicted()
    for _ in range(5):
        world.sent(tokens=10_000)

    assert world.predicted() == pytest.approx(alone + 50_000 * FIRST_TOKEN.guess_token_s)


def test_it_learns_how_long_first_tokens_take():
    """Of each replica apart, and nine of ten are within what it says."""
    world = World("ab")
    for number in range(10 * ENOUGH):
        world.serve("a", 2.0 + 0.1 * (number % 10))
        world.serve("b", 0.2 + 0.01 * (number % 10))

    assert 2.7 < world.predicted("a") < 3.2
    assert 0.27 < world.predicted("b") < 0.32


def test_without_a_server_the_best_one_is_meant():
    """Of those that are up; where none is, nothing is foreseen."""
    world = World("ab")
    for _ in range(ENOUGH):
        world.serve("a", 2.0)
        world.serve("b", 0.2)
    best = world.predicted(None)
    world.fleet.named("b").health = GONE
    left = world.predicted(None)
    world.fleet.named("a").health = GONE

    assert best < 0.5 < 1.5 < left
    assert world.predicted(None) == 0.0


def test_who_hung_up_was_told_too_little():
    """Where clients leave before the first token, the prediction rises; else the slowest would never be seen."""
    world = World()
    for number in range(10 * ENOUGH):
        world.serve("a", 0.1 + 0.1 * (number % 10))
    before = world.predicted()
    for _ in range(ENOUGH):
        one = world.sent()
        world.now_s += 30.0
        one.over(tokens=0, whole=False, left=True)

    assert world.predicted() > before


@pytest.mark.parametrize("how", [{"whole": False, "left": False}, {"whole": False, "left": True}])
def test_a_stream_that_is_cut_says_nothing_of_its_pace(how):
    """Only whole answers do, by their time after the first token and the tokens that came in it."""
    cut, whole = World(), World()
    for _ in range(ENOUGH):
        whole.serve("a", 0.1, between_s=0.5, answer=11)
        one = cut.sent()
        cut.now_s += 0.1
        one.first()
        cut.now_s += 5.0
        one.over(tokens=11, **how)

    def between_s(world: World) -> float:
        situation = world.forecasts._situation(world.fleet.named("a"), 1000, None)
        return world.forecasts.of("a").predictor.between_tokens.guess(situation).p90_s

    assert between_s(whole) == pytest.approx(0.5, rel=0.1)
    assert between_s(cut) == between_s(World())


def test_a_prefix_that_was_computed_there_lately_is_cached():
    """Only where it was, and no more than the prompt has; with the first token, not before."""
    world = World("ab")
    one = world.sent("a", tokens=1000, near=7, shared=600)
    uncomputed = world.forecasts.uncached("m", 1000, 7)
    one.first()

    assert uncomputed == 1000
    assert world.forecasts.uncached("m", 1000, 7) == 400
    assert (world.forecasts.uncached("m", 500, 7), world.forecasts.uncached("m", 1000, 8)) == (0, 1000)
    assert world.predicted("a", near=7) < world.predicted("b", near=7)
    one.over(tokens=1, whole=True, left=False)


def test_a_server_that_is_gone_has_nothing_cached_when_it_comes_back():
    """Its promises would be those of a warm cache, and be broken; what it learnt of the machine stays."""
    world = World()
    for _ in range(ENOUGH):
        world.serve("a", 2.0)
    one = world.sent(tokens=1000, near=7)
    one.first()
    slow = world.predicted(tokens=1000, near=None)

    world.forecasts.lost("a")

    assert world.forecasts.uncached("m", 1000, 7) == 1000
    assert world.predicted(tokens=1000, near=7) == slow
    one.over(tokens=1, whole=True, left=False)
    assert world.ahead() == 0


def test_what_a_replica_says_of_itself_counts():
    """Other gateways send it some too. What is no number counts as nothing."""
    world = World()
    replica = world.fleet.named("a")
    replica.gauges = Gauges(waiting=5.0, kv_used=0.5, preemptions=0.0, at_s=0.0, running=9.0)
    told = world.forecasts._situation(replica, 10, None)
    replica.gauges = Gauges(waiting=None, kv_used=None, preemptions=None, at_s=0.0)
    untold = world.forecasts._situation(replica, 10, None)

    assert (told.running, told.waiting, told.kv_use) == (9, 5, 0.5)
    assert (untold.running, untold.waiting, untold.kv_use) == (0, 0, 0.0)


def test_what_is_remembered_of_prefixes_is_bounded():
    """The one that was used longest ago is forgotten."""
    prompts = Prompts()
    for near in range(NEAR_MAX):
        prompts.note(near, 10, 0.0)
    prompts.note(0, 10, 0.0)
    prompts.note(NEAR_MAX, 10, 0.0)

    assert len(prompts._known) == NEAR_MAX
    assert tuple(prompts.cached(near, 10, 1.0) for near in (0, 1, NEAR_MAX)) == (10, 0, 10)


@pytest.mark.parametrize("per_s", [5, 200, 1000])
def test_a_busy_replica_is_learnt_from_so_often_a_second(per_s):
    """To learn costs as much as three guesses; once it is known how busy it is, so many are enough."""
    world = World()
    learnt = [0] * 5
    for number in range(per_s * len(learnt)):
        world.now_s = 1000.0 + number / per_s
        learnt[number // per_s] += world.sent().predicted_s is not None

    assert learnt[0] == per_s
    assert all(min(per_s, LEARNT_PER_S) <= count <= 2 * LEARNT_PER_S for count in learnt[1:])


def test_a_request_that_is_promised_a_first_token_goes_where_that_comes_soonest():
    """Though it is near to another replica; one that is promised nothing goes where it is near to."""
    world = World("ab")
    near = next(number for number in range(9) if world.fleet.pick("m", frozenset(), number) == "a")
    for _ in range(ENOUGH):
        world.serve("a", 3.0)
        world.serve("b", 0.1)

    def goes(promised: bool) -> str | None:
        first_s = (lambda one: world.forecasts.at(one, tokens=1000, near=None)) if promised else None
        return world.fleet.with_room("m", near, lambda name: True, first_s)

    assert (goes(promised=True), goes(promised=False)) == ("b", "a")
    assert all(one.ttft_s is None for one in world.fleet.all())


def looked(world: World, left_s: float) -> float:
    """When a request that is due then is told that its first token will come."""
    return Look(world.forecasts, 1000, None, left_s).first_s(world.fleet.named("a"))


def test_so_many_are_let_in_where_nothing_is_known_as_teach_what_there_is_to_know():
    """Else nobody would ever be, where all are promised less than what is guessed."""
    world = World()
    empty_s = looked(world, 0.1)
    for _ in range(COLD_MAX):
        world.fleet.enter("a")
    full_s = looked(world, 0.1)

    assert (empty_s, looked(world, 10.0)) == (0.0, full_s)
    assert full_s == pytest.approx(FIRST_TOKEN.guess_s + 1000 * FIRST_TOKEN.guess_token_s)


def test_an_idle_replica_that_was_slow_is_tried_and_forgiven_if_it_is_not_any_more():
    """In a flood it was. Nothing is learnt of one that is sent nothing."""
    world = World()
    for _ in range(ENOUGH):
        world.serve("a", 9.0)
    slow_s = looked(world, 1.0)
    world.now_s += STALE_S + 0.1
    patient_s, tried_s = looked(world, slow_s), looked(world, 1.0)
    world.fleet.enter("a")
    busy_s = looked(world, 1.0)
    world.fleet.leave("a")
    just_now_s = looked(world, 1.0)
    world.now_s += STALE_S + 0.1
    world.fleet.named("a").gauges = Gauges(0.0, None, None, world.now_s, 1.0)
    elsewhere_s = looked(world, 1.0)  # it is other gateways' requests that it has
    world.fleet.named("a").gauges = None

    assert slow_s == patient_s == busy_s == just_now_s == elsewhere_s
    assert slow_s > 5.0
    assert tried_s == 0.0
    world.serve("a", 8.0)  # it is as slow as it was
    assert looked(world, 1.0) > 5.0
    world.now_s += STALE_S + 0.1
    world.serve("a", 0.1)  # not one that was to show it
    assert looked(world, 60.0) > 5.0
    world.now_s += STALE_S + 0.1
    look = Look(world.forecasts, 1000, None, 1.0)
    assert (look.first_s(world.fleet.named("a")), look.tried) == (0.0, {"a"})
    world.serve("a", 0.1, trial=True)
    assert not world.forecasts.knows("a", 1000)


@pytest.mark.parametrize("standby", [True, False])
def test_a_request_goes_to_who_is_in_time_of_those_that_have_room(standby):
    """Also of those that stand by, while the active ones are full."""
    world = World("abc")
    soon_s = {"a": 0.1, "b": 0.51, "c": 0.5}
    for name in "bc":
        world.fleet.named(name).standby = standby

    name = world.fleet.with_room("m", None, lambda one: one != "a", lambda one: soon_s[one.name], left_s=0.5)

    assert name == "c"
