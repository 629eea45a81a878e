"""What the ends of a request's legs say of its servers."""

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.books.tenants import OPEN
from gateway.fleet.listener import Listener
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Care, Fleet
from gateway.legs import Legs
from gateway.stream.leg_end import Cause, LegEnd
from gateway.turns import Turns
from gateway.visits import Visit, Visits
from guards.breaker import Outcome, Plan, State
from guards.health import Health
from guards.place import Rank
from tests.gateway.stage import Stage
from tests.gateway.stream.fakes import Engine, FakeSink, call_for, ids_of, terms_for

UP, DOWN = Health(up=True, why="answers"), Health(up=False, why="a test")
FAILED = LegEnd(Cause.FAILED, "the server answered status 500", 500, b"")
DONE = LegEnd(Cause.DONE, "", 200)
CLOSED = LegEnd(Cause.CLOSED)
CALLS = 4  # that open a breaker, if half of them failed


async def _nobody(*asked: object) -> LegEnd:
    raise AssertionError("nobody is asked here")


class World:
    """Replicas of model m that are up, and what requests do to their breakers."""

    def __init__(self, names: str = "ab", down: str = "", **care: Any) -> None:
        replicas = [Replica(name, model="m", health=DOWN if name in down else UP) for name in names]
        self.now_s = 0.0
        cares = Care(1.0, 1.0, breakers=Plan(calls=CALLS), **care)
        self.fleet = Fleet(replicas, _nobody, Listener(), cares, lambda: self.now_s)

    def request(self) -> Visits:
        return Visits(self.fleet, "m")

    def calls(self, name: str) -> tuple[int, int]:
        """What its breaker has counted."""
        (replica,) = (one for one in self.fleet.all() if one.name == name)
        return replica.breakers["m"].calls

    def state(self, name: str) -> State:
        (replica,) = (one for one in self.fleet.all() if one.name == name)
        return replica.breakers["m"].state


def sent(visits: Visits, name: str, legs: int = 1) -> Visit:
    visit = visits.begin(name)
    visit.legs = legs
    return visit


def test_a_failure_counts_once_another_server_brings_a_token():
    """Not at the end of what may be a long stream."""
    world = World()
    visits = world.request()
    visits.ended(sent(visits, "a"), FAILED, lost=True)
    before = world.calls("a")
    second = sent(visits, "b")

    visits.progressed()
    after = world.calls("a"), world.calls("b")
    visits.ended(second, DONE, lost=False)
    visits.close(left=False)

    assert (before, after) == ((0, 0), ((1, 1), (0, 0)))
    assert (world.calls("a"), world.calls("b")) == ((1, 1), (1, 0))


@pytest.mark.parametrize("servers", ["ab", "abc"])
def test_poison_counts_against_nobody(servers):
    """However many such requests come, no breaker has counted one."""
    world = World(servers)
    for _ in range(10 * CALLS):
        visits = world.request()
        for name in servers:
            visits.ended(sent(visits, name), FAILED, lost=True)
        visits.close(left=False)

    assert [world.calls(name) for name in servers] == [(0, 0)] * len(servers)


def test_poison_beside_a_server_that_cannot_be_reached_counts_against_that_one_alone():
    """A connection that is refused is no request's fault."""
    world = World()
    visits = world.request()

    visits.ended(sent(visits, "a"), LegEnd(Cause.UNREACHED), lost=True)
    visits.ended(sent(visits, "b"), FAILED, lost=True)
    visits.close(left=True)

    assert (world.calls("a"), world.calls("b")) == ((1, 1), (0, 0))


@pytest.mark.parametrize(
    ("end", "lost"),
    [
        (LegEnd(Cause.REFUSED, "", 400), False),
        (LegEnd(Cause.REFUSED, "", 429), True),
        (LegEnd(Cause.REFUSED, "", 404), True),
        (LegEnd(Cause.ABANDONED), True),
        (CLOSED, False),
    ],
    ids=["400", "429", "404", "abandoned", "closed by us"],
)
def test_refusals_and_what_we_close_count_for_nothing(end, lost):
    """Whether or not the request went on elsewhere afterwards."""
    world = World()
    visits = world.request()

    visits.ended(sent(visits, "a"), end, lost)
    visits.ended(sent(visits, "b"), DONE, lost=False)
    visits.close(left=False)

    assert world.calls("a") == (0, 0)


@pytest.mark.parametrize("end", [FAILED, LegEnd(Cause.BROKEN), LegEnd(Cause.PROTOCOL), LegEnd(Cause.SILENT), CLOSED])
def test_every_way_of_losing_a_leg_can_be_its_servers(end):
    """A status of 500 and above, a broken connection, nonsense, silence; and what we closed for its nonsense."""
    world = World()
    visits = world.request()

    visits.ended(sent(visits, "a"), end, lost=True)
    visits.ended(sent(visits, "b"), DONE, lost=False)

    assert world.calls("a") == (1, 1)


def test_a_request_for_many_choices_is_one_call():
    """One lost leg is its failure, and all that end well are its answer."""
    world = World()
    visits = world.request()
    lost, well = sent(visits, "a", legs=3), sent(visits, "b", legs=2)

    visits.ended(lost, FAILED, lost=True)
    visits.ended(lost, CLOSED, lost=False)
    visits.ended(lost, FAILED, lost=True)
    visits.ended(well, DONE, lost=False)
    early = world.calls("b")
    visits.ended(well, DONE, lost=False)
    visits.close(left=False)

    assert (world.calls("a"), early, world.calls("b")) == ((1, 1), (0, 0), (1, 0))


@pytest.mark.parametrize(
    ("down", "left", "counted"), [("", False, 1), ("", True, 0), ("b", False, 0)], ids=["tried once", "left", "alone"]
)
def test_a_failure_nobody_else_could_repeat(down, left, counted):
    """It counts, but not where the client left, nor where no other server was up to be asked."""
    world = World(down=down)
    visits = world.request()

    visits.ended(sent(visits, "a"), FAILED, lost=True)
    visits.close(left=left)

    assert world.calls("a") == (counted, counted)


def test_poison_that_is_tried_once_for_want_of_retries_counts_against_nobody():
    """Many at once use them up; what one server failed might have failed at all of them."""
    world = World()
    while world.fleet.may_retry():
        pass

    visits = Visits(world.fleet, "m")
    visit = visits.begin("a")
    visit.legs += 1
    visits.ended(visit, FAILED, True)
    visits.close(left=False)

    assert world.fleet.named("a").breakers["m"].calls == (0, 0)



def test_without_any_retries_a_failure_is_its_servers():
    """They are not used up, they were never there: else no breaker would ever open."""
    world = World(retry_share=0.0, retries_per_s=0.0)
    visits = Visits(world.fleet, "m")
    visit = visits.begin("a")
    visit.legs += 1
    visits.ended(visit, FAILED, True)
    visits.close(left=False)

    assert world.fleet.named("a").breakers["m"].calls == (1, 1)


def test_a_broken_server_is_left_alone_and_comes_back_after_one_probe():
    """Half of the window's calls failed: others are picked, then one request is let in, then all are."""
    world = World()
    for _ in range(CALLS):
        visits = world.request()
        visits.ended(sent(visits, "a"), FAILED, lost=True)
        visits.ended(sent(visits, "b"), DONE, lost=False)
        visits.close(left=False)
    opened = world.state("a"), world.fleet.pick("m", frozenset())

    world.now_s += Plan().open_s
    half = world.fleet.pick("m", frozenset())
    probing = world.request()
    probe = sent(probing, "a")
    meanwhile = world.fleet.pick("m", frozenset())
    probing.ended(probe, DONE, lost=False)

    assert (opened, half, meanwhile) == ((State.REFUSING, "b"), "a", "b")
    assert (world.state("a"), world.fleet.pick("m", frozenset())) == (State.ALLOWING, "a")


def test_with_all_breakers_open_everything_is_as_if_none_were():
    """Whoever manages to open them all has won nothing: somebody is picked."""
    world = World()
    for name in "ab":
        visits = [world.request() for _ in range(CALLS)]
        for one in visits:
            one.ended(sent(one, name), FAILED, lost=True)
            one.close(left=False)

    assert [world.state(name) for name in "ab"] == [State.REFUSING] * 2
    assert world.fleet.pick("m", frozenset()) == "a"


async def test_the_probe_is_taken_when_its_server_is_picked():
    """Between that and the first byte others come: they find it taken, and a client that leaves gives it back."""
    stage = Stage(call_for(), Engine([ids_of("ok")]))
    (first, _) = stage.fleet.all()
    entry = stage.fleet.admit("a", "tiny")
    breaker = first.breakers["tiny"]
    for _ in range(Plan().calls):
        stage.fleet.admit("a", "tiny").end(Outcome.FAILED)
    entry.end(Outcome.FAILED)
    stage.now_s += Plan().open_s

    leg = await stage.opened(0)
    taken = leg.replica, breaker.state, breaker.refuses
    stage._serving.cancel()
    await stage.turn()

    assert taken == ("a", State.PROBING, True)
    assert not breaker.refuses



def legs(world: World) -> Legs:
    nothing: Any = None
    call = call_for(model="m")
    quote: Any = SimpleNamespace(terms=terms_for(call))
    turns = Turns(world.fleet, {}, Rank("default"), lambda: world.now_s)
    return Legs(world.fleet, nothing, {}, (), turns.one(call, OPEN, FakeSink(), quote))


def test_who_picks_a_server_half_open_has_its_probe_before_anything_is_sent():
    """Another request that comes meanwhile goes elsewhere; one that ends before it was sent gives the probe back."""
    world = World()
    for _ in range(CALLS):
        world.fleet.admit("a", "m").end(Outcome.FAILED)
    world.now_s += Plan().open_s

    with legs(world) as first, legs(world) as second:
        picked = first.pick(frozenset()), second.pick(frozenset())
    with legs(world) as third:
        again = third.pick(frozenset())

    assert (picked, again) == (("a", "b"), "a")


async def test_a_streams_first_token_settles_whose_fault_it_was():
    """A long stream on the second server does not keep the first one's failure from counting."""
    stage = Stage(call_for(), Engine([ids_of("a long answer")]))
    (await stage.opened(0)).end(FAILED)
    second = await stage.opened(1)
    failing = stage.fleet.all()[0].breakers["tiny"]

    before = failing.calls
    second.bring(3)
    after = failing.calls
    second.finish()
    await stage.end()

    assert (before, after) == ((0, 0), (1, 1))
    assert stage.fleet.all()[1].breakers["tiny"].calls == (1, 0)
