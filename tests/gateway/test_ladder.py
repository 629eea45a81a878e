"""What is taken from requests that servers are too busy for."""

from types import SimpleNamespace

import pytest

from gateway.books.tenants import OPEN
from gateway.fleet.listener import Listener
from gateway.fleet.pulse import Pulse
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Care
from gateway.fleet.replicas import Fleet as RealFleet
from gateway.ladder import AS_ASKED, DEGRADED_HEADER, Eased, Ladder
from gateway.stream.seams import Terms
from gateway.turns import Turns
from gateway.waiting import Waiting
from guards.admission import Admission, Bounds
from guards.budget import UNLIMITED
from guards.ladder import Step
from guards.place import Rank
from guards.refusal import Reason, Refused
from guards.sla import Objective, ServiceClass, Slope, Tier
from tests.gateway.stage import UP
from tests.gateway.stream.fakes import call_for

SHORTER, CHEAPER = Step.SHORTER, Step.CHEAPER
LATE = Refused(Reason.LATE, "late")
CAP, LIKELY = 100, 400


class Fleet:
    def __init__(self, down=()):
        self.down = down

    def up(self, model):
        return [] if model in self.down else [model]


def ladder(*steps, down=(), windows=(), likely=LIKELY):
    cheaper = {"big": "mid", "mid": "small"}
    return Ladder(Fleet(down), steps, CAP, cheaper, dict(windows).get, lambda model, prompt: likely)


def asked(**said):
    return call_for(model="big", max_tokens=None, **said)


def ease(one, call, *let_in):
    """Ease a request where these would be let in, by model and size of the answer."""
    return one.ease(call, lambda model, likely, size: None if (model, size) in let_in else LATE)


@pytest.mark.parametrize(
    ("way", "steps", "model", "header"),
    [
        (("big", CAP), (SHORTER,), "big", "max_tokens=100"),
        (("mid", LIKELY), (CHEAPER,), "mid", "model=mid"),
        (("small", LIKELY), (CHEAPER,), "small", "model=small"),
        (("mid", CAP), (SHORTER, CHEAPER), "mid", "max_tokens=100, model=mid"),
    ],
)
def test_the_first_step_that_lets_a_request_in_is_taken(way, steps, model, header):
    """The call names the model that answers; client and journal are told what was taken, and why."""
    call = asked()

    eased = ease(ladder(SHORTER, CHEAPER), call, way)

    assert eased == Eased(steps, "big", Reason.LATE, UNLIMITED if way[1] == LIKELY else CAP, LIKELY)
    assert (call.model, call.body["model"]) == (model, model)
    assert eased.headers(UNLIMITED, call.model) == ((DEGRADED_HEADER, header),)
    about = eased.about({}, call.model)
    assert (about["degraded"], about["degraded_by"]) == ([*steps], "deadline_unreachable")
    assert about.get("asked_model") == ("big" if model != "big" else None)


@pytest.mark.parametrize("let_in", [[("big", LIKELY), ("big", CAP)], []])
def test_who_is_let_in_as_it_is_or_not_at_all_keeps_what_it_asked_for(let_in):
    """Its model too."""
    call = asked()

    assert ease(ladder(SHORTER, CHEAPER), call, *let_in) is AS_ASKED
    assert call.model == "big"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"down": ("mid",)}, "nobody serves it now"),
        ({"windows": {"mid": 10}}, "the prompt may not fit it"),
    ],
)
def test_a_model_that_could_not_answer_is_passed_over(said, why):
    """The next one may."""
    call = asked()

    ease(ladder(CHEAPER, **said), call, ("mid", LIKELY), ("small", LIKELY))

    assert call.model == "small", why


@pytest.mark.parametrize("said", [{"max_tokens": CAP}, {}])
def test_an_answer_that_is_short_anyway_is_not_shortened(said):
    """By its client's word, or as such answers are."""
    call = call_for(**{"model": "big", "max_tokens": None} | said)

    assert ease(ladder(SHORTER, likely=LIKELY if said else CAP), call, ("big", CAP)) is AS_ASKED


def test_what_a_breaker_takes_beside_is_told_once():
    """The shorter of both, each step once, the model that was asked for at first."""
    eased = Eased((SHORTER,), "big", Reason.LATE, CAP)

    about = eased.about({"degraded": [SHORTER, CHEAPER], "asked_model": "mid", "model": "small"}, "small")

    assert eased.headers(7, "small") == ((DEGRADED_HEADER, "max_tokens=7, model=small"),)
    assert about == {
        "degraded": [SHORTER, CHEAPER], "degraded_by": "deadline_unreachable", "asked_model": "big", "model": "small"
    }  # fmt: skip


async def test_a_request_is_foreseen_without_a_trace():
    """By the promise for what it asks, at the size that it would have; no server's breaker counts it."""
    servers = [Replica(model, model=model, health=UP, pulse=Pulse()) for model in ("big", "mid")]
    fleet = RealFleet(servers, None, Listener(), Care(60.0, 1.0), lambda: 100.0)
    large = ServiceClass("large", Objective(Slope(9.0)))
    classes = (ServiceClass("small", Objective(Slope(1.0)), output_max=CAP), large)
    rank = Rank("default", promises=Tier("default", classes))
    turns = Turns(fleet, {}, rank, lambda: 100.0)
    slow_s = {"big": 9.5, "mid": 8.5}
    asked_of = []

    def first_s(place, server):
        asked_of.append((place.ask.model, server, place.ask.output_tokens, place.ask.deadline_s))
        return slow_s[server]

    turns.waiting = Waiting(Admission(Bounds(), turns.route, first_s), lambda: 100.0)
    turns.ladder = Ladder(fleet, (SHORTER, CHEAPER), CAP, {"big": "mid"}, lambda model: None, lambda *of: LIKELY)
    call = asked()

    eased = turns.ease(call, OPEN, SimpleNamespace(received_at=100.0))

    assert eased.steps == (CHEAPER,)
    assert asked_of == [("big", "big", LIKELY, 109.0), ("big", "big", CAP, 109.0), ("mid", "mid", LIKELY, 109.0)]
    assert len(turns.waiting) == 0
    assert not any(one.breakers for one in fleet.all())


def test_who_is_shortened_is_promised_what_it_asked_for():
    """A shorter answer is no reason for a tighter deadline; but it takes less of a server."""
    classes = (
        ServiceClass("small", Objective(Slope(1.0)), output_max=CAP), ServiceClass("large", Objective(Slope(9.0)))
    )  # fmt: skip
    rank = Rank("default", promises=Tier("default", classes))
    turns = Turns(RealFleet([], None, Listener(), Care(60.0, 1.0), lambda: 0.0), {}, rank, lambda: 0.0)
    terms = Terms(4, prompt_likely=10, answer_likely=CAP, asked_likely=LIKELY)

    turn = turns.one(asked(), OPEN, SimpleNamespace(received_at=0.0), SimpleNamespace(terms=terms))

    assert turn.promise.service_class == "large"
    assert turn.tokens == (10, CAP)
