"""Verdicts on pages, weights, budgets and tenants, from observations alone."""

import random
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from loadtests.answers import Answer
from loadtests.gameday.faults import model_change
from loadtests.gameday.faults.model_change import UNCONTINUABLE, ModelChange
from loadtests.gameday.faults.page_corruption import (
    HELD,
    HELD_KINDS,
    KINDS,
    OTHER,
    PUT_KINDS,
    RESIDENT,
    STORED,
    STORED_KINDS,
    PageCorruption,
    moved,
)
from loadtests.gameday.faults.poison_request import PoisonRequest
from loadtests.gameday.faults.runaway_cost import STOPPED, RunawayCost
from loadtests.gameday.faults.tenant_flood import TenantFlood
from loadtests.gameday.faults.token_explosion import TokenExplosion
from loadtests.gameday.page_hand import FILLING, PLACES
from loadtests.gameday.scenario import Missed, Scenario
from loadtests.gameday.score import Verdict, judged

FOUR = [True] * 4


def trial(where=RESIDENT, **more):
    """A page that was damaged, found, and whose reader was answered rightly."""
    return {"where": where, "kind": "flip", "place": "", "changed": True, "found": 1, "moved": 0.0} | more


def damaged(which=(HELD, "flip", FILLING), **more):
    """A trial of all that is promised; the one of this place, kind and place of a running request as said."""
    every = [(RESIDENT, kind, "") for kind in KINDS] + [(STORED, kind, "map") for kind in STORED_KINDS]
    every += [(STORED, kind, "") for kind in PUT_KINDS]
    every += [(HELD, kind, place) for place in PLACES for kind in HELD_KINDS]
    return {
        "trials": [
            trial(where, kind=kind, place=place, **(more if (where, kind, place) == which else {}))
            for where, kind, place in every
        ]
    }


PAGES = {"drained": True, "went_elsewhere": True, "moved": [0.0, 0.0], "faults": []}
WEIGHTS = {
    "others": FOUR, "computed": FOUR, "loaded": 0, "read": 24, "told": True, "began_at_the_old": FOUR,
    "resumed": [False] * 4, "ends": [UNCONTINUABLE] * 4, "charged_once": FOUR, "later": True, "faults": [],
}  # fmt: skip
TOKENS = {
    "ends": ["budget_exceeded"] * 3 + ["refused"], "answers": [200, 180, 200, 0], "charged": FOUR, "spent": 900,
    "delivered": 900,    "held": 0, "late": 402, "refused": [400], "asked": [0], "modest": FOUR, "faults": [],
}  # fmt: skip
COST = {
    "ends": [STOPPED] * 4, "charged": FOUR, "burnt": 0.06, "opened": ["key:k"], "key": "key:k", "ended_s": [0.4],
    "refused": STOPPED, "equal": FOUR, "calm_s": 0.02, "beside_s": 0.05, "faults": [],
}  # fmt: skip
FLOODED = {
    "whole": FOUR, "first_s": [1.0] * 4, "beside": FOUR, "flood_whole": FOUR, "flood_errors": [""] * 4,
    "flood_first_s": 10.0, "faults": [],
}  # fmt: skip
POISONED = {
    "status": [502] * 4, "attempts": [2, 2, 2, 1], "cost": 0, "breakers": [], "down": [], "states": ["up", "up"],
    "equal": FOUR, "charged": FOUR, "faults": [],
}  # fmt: skip
SWARM = {"each_turn": 200, "budget": 900}
SEEN: dict[type[Scenario], tuple[dict, dict]] = {
    PageCorruption: (damaged(), PAGES),
    ModelChange: ({}, WEIGHTS),
    TokenExplosion: (SWARM, TOKENS),
    RunawayCost: ({}, COST),
    TenantFlood: ({}, FLOODED),
    PoisonRequest: ({"legs": 2}, POISONED),
}
BAD = [
    (PageCorruption, "drained", False),
    (PageCorruption, "went_elsewhere", False),
    (PageCorruption, "moved", [0.0, OTHER]),
    (PageCorruption, "faults", ["Traceback"]),
    (ModelChange, "others", [False, True]),
    (ModelChange, "computed", [False, True]),
    (ModelChange, "loaded", 4),
    (ModelChange, "told", False),
    (ModelChange, "resumed", [False, True]),
    (ModelChange, "ends", [UNCONTINUABLE, "length"]),
    (ModelChange, "charged_once", [False, True]),
    (ModelChange, "later", False),
    (ModelChange, "faults", ["Traceback"]),
    (TokenExplosion, "ends", ["budget_exceeded", "length"]),
    (TokenExplosion, "answers", [201, 10]),
    (TokenExplosion, "charged", [False, True]),
    (TokenExplosion, "delivered", 899),
    (TokenExplosion, "held", 1),
    (TokenExplosion, "late", 200),
    (TokenExplosion, "refused", [200]),
    (TokenExplosion, "asked", [1]),
    (TokenExplosion, "modest", [False, True]),
    (TokenExplosion, "faults", ["Traceback"]),
    (RunawayCost, "ends", [STOPPED, "length"]),
    (RunawayCost, "charged", [False, True]),
    (RunawayCost, "burnt", 0.2),
    (RunawayCost, "opened", []),
    (RunawayCost, "opened", ["key:k", "key:other"]),
    (RunawayCost, "ended_s", [3.0]),
    (RunawayCost, "ended_s", []),
    (RunawayCost, "refused", "None"),
    (RunawayCost, "equal", [False, True]),
    (RunawayCost, "beside_s", 1.0),
    (RunawayCost, "beside_s", 0.0),
    (RunawayCost, "faults", ["Traceback"]),
    (TenantFlood, "whole", [False, True]),
    (TenantFlood, "first_s", [1.0, 9.0, 5.9, 1.0]),
    (TenantFlood, "first_s", [1.0, 0.0, 1.0, 1.0]),
    (TenantFlood, "flood_whole", [False, True]),
    (TenantFlood, "faults", ["Traceback"]),
    (PoisonRequest, "status", [502, 200]),
    (PoisonRequest, "attempts", [2, 3]),
    (PoisonRequest, "cost", 7),
    (PoisonRequest, "breakers", ["one open"]),
    (PoisonRequest, "down", ["one"]),
    (PoisonRequest, "states", ["up", "down"]),
    (PoisonRequest, "equal", [False, True]),
    (PoisonRequest, "charged", [False, True]),
    (PoisonRequest, "faults", ["Traceback"]),
]


@pytest.mark.parametrize("scenario", SEEN)
def test_what_is_as_promised_holds(scenario):
    """Observations of a fault that was survived are a pass."""
    assert judged(scenario.judge(*SEEN[scenario])) is Verdict.HELD


@pytest.mark.parametrize(("scenario", "name", "value"), BAD, ids=lambda one: getattr(one, "__name__", str(one)))
def test_each_observation_alone_can_break_a_hypothesis(scenario, name, value):
    """One trial that did not hold is enough."""
    injected, seen = SEEN[scenario]

    probes = scenario.judge(injected, seen | {name: value})

    assert judged(probes) is Verdict.BROKEN
    assert sum(not probe.holds for probe in probes) == 1


def test_a_budget_may_be_used_up_and_no_token_more():
    """One above it is overspent, though it was delivered."""
    probes = TokenExplosion.judge(SWARM, TOKENS | {"spent": 901, "delivered": 901})

    assert [probe.seen for probe in probes if not probe.holds] == ["901"]


@pytest.mark.parametrize("bad", [{"found": 0}, {"moved": 0.5}])
def test_a_damaged_page_must_be_found_and_its_reader_answered_rightly(bad):
    """Each page is a trial of both; the kind of the one that was missed is told."""
    probes = PageCorruption.judge(damaged(**bad), PAGES)

    (broken,) = (probe for probe in probes if not probe.holds)
    assert (broken.passed, broken.tried, broken.seen) == (8, 9, "flip, being filled")


UNHIT = {"changed": False, "why": "it stayed"}


@pytest.mark.parametrize(
    ("which", "said"),
    [((RESIDENT, "rows", ""), "rows, resident (it stayed)"), ((STORED, "replay", "map"), "replay, stored (it stayed)"),
     ((STORED, PUT_KINDS[2], ""), "another tenant's, stored (it stayed)")],
)  # fmt: skip
def test_damage_that_could_not_be_made_is_named_with_its_reason(which, said):
    """All other kinds do not make up for it; a machine on which it is never made says so."""
    with pytest.raises(Missed) as missed:
        PageCorruption.judge(damaged(which, **UNHIT), PAGES)

    assert str(missed.value) == f"1 of 27 pages were not damaged; so not tried is {said}"


def test_each_place_of_a_running_request_must_be_hit():
    """Whatever the kind."""
    tried = [one | UNHIT if one["place"] == FILLING else one for one in damaged()["trials"]]

    with pytest.raises(Missed) as missed:
        PageCorruption.judge({"trials": tried}, PAGES)

    said = "3 of 27 pages were not damaged; so not tried is being filled, held by a running request (it stayed)"
    assert str(missed.value) == said


def test_damage_that_was_not_made_hides_no_failure():
    """A page that was not found is told, whatever else could not be tried."""
    tried = [one | UNHIT if one["where"] == STORED else one for one in damaged(found=0)["trials"]]

    assert judged(PageCorruption.judge({"trials": tried}, PAGES)) is Verdict.BROKEN
    assert judged(PageCorruption.judge(damaged(found=0), {"missed": "it was over"})) is Verdict.BROKEN


@pytest.mark.parametrize("which", [(RESIDENT, "truncate", ""), (HELD, "flip", FILLING)])
def test_damage_that_was_made_elsewhere_or_may_be_lacking_is_told(which):
    """The scenario holds, and says what was not damaged."""
    probes = PageCorruption.judge(damaged(which, **UNHIT), PAGES)

    assert judged(probes) is Verdict.HELD
    (told,) = (probe.seen for probe in probes if probe.seen)
    assert told == f"not damaged: {', '.join(filter(None, which[1:]))}"


def test_a_trial_that_missed_leaves_the_others_be():
    """It is noted down with its reason, also where the page is what it was."""
    missed = PageCorruption._unless_missed(HELD, "flip", FILLING, Mock(side_effect=Missed("it was over")))
    stayed = PageCorruption._unless_missed(HELD, "flip", FILLING, lambda: {"changed": False, "found": 0, "moved": 0.0})

    assert (missed["changed"], missed["why"], missed["place"]) == (False, "it was over", FILLING)
    assert (stayed["changed"], stayed["why"]) == (False, "the page stayed as it was")


@pytest.mark.parametrize(
    ("scenario", "injected", "seen"),
    [
        (PageCorruption, damaged(), {"missed": "it was over"}),
        (ModelChange, {}, WEIGHTS | {"began_at_the_old": [False] * 4}),
        (ModelChange, {}, WEIGHTS | {"ends": ["length"] * 4}),
        (ModelChange, {}, WEIGHTS | {"read": 0}),
        (TenantFlood, {}, FLOODED | {"beside": [False] * 4}),
        (PoisonRequest, {"legs": 2}, POISONED | {"attempts": [1] * 4}),
    ],
)
def test_a_fault_that_hit_nothing_proves_nothing(scenario, injected, seen):
    """It is told as missed."""
    with pytest.raises(Missed):
        scenario.judge(injected, seen)


@pytest.mark.parametrize(
    ("scenario", "seen"),
    [
        (ModelChange, WEIGHTS | {"began_at_the_old": [False] * 4, "loaded": 4}),
        (ModelChange, WEIGHTS | {"ends": ["length"] * 4, "loaded": 4}),
        (ModelChange, WEIGHTS | {"began_at_the_old": [False] * 4, "ends": ["no_replica"] * 4}),
        (TenantFlood, FLOODED | {"beside": [False] * 4, "flood_whole": [False] * 4}),
        (PoisonRequest, POISONED | {"attempts": [1] * 4, "cost": 7}),
        (PoisonRequest, POISONED | {"attempts": [1] * 4, "equal": [False] * 4}),
    ],
)
def test_a_fault_that_hit_nothing_hides_no_failure(scenario, seen):
    """What was tried all the same, and did not hold, is told, and is in the score."""
    assert judged(scenario.judge({"legs": 2}, seen)) is Verdict.BROKEN


def test_streams_that_all_go_on_at_the_new_weights_are_no_miss():
    """They end as if nothing had happened; that a second server worked on them is what must not be."""
    probes = ModelChange.judge({}, WEIGHTS | {"ends": ["length"] * 4, "resumed": [True] * 4})

    broken = {probe.name: probe.passed for probe in probes if not probe.holds}
    assert broken == {"a stream of the old weights ends by name": 0, "none of them goes on at the new": 0}


def test_a_store_that_is_not_read_hides_no_failure():
    """Whatever else does not hold is told."""
    assert judged(ModelChange.judge({}, WEIGHTS | {"read": 0, "charged_once": [False]})) is Verdict.BROKEN


class Weights(ModelChange):
    """Two servers; of the new one it is said how many pages it has read, look by look."""

    def __init__(self, monkeypatch, *loaded: int) -> None:
        self.ground = SimpleNamespace(rng=random.Random(1), fleet=SimpleNamespace(secret=""))
        self.old, self.new, self.asked = "old", "new", []
        self.bodies = self._bodies()
        looks = iter(loaded)
        monkeypatch.setattr(model_change, "_loaded", lambda *_: next(looks))
        monkeypatch.setattr(model_change, "EngineHand", lambda *_: SimpleNamespace(forget=lambda: None))

    def _ask(self, engine, bodies):
        self.asked.append((engine, bodies == self.bodies))
        return [Answer(ids=[[len(self.asked)]])]


@pytest.mark.parametrize(
    ("loaded", "found", "rounds"),
    [
        ((5, 5, 29), (0, 24), 1),
        ((5, 29, 53), (24, 24), 1),
        ((5, 5, 5, 5, 9, 9), (4, 0), 2),
        ((5,) * 9, (0, 0), 3),
    ],
    ids=["looks, and finds its own", "reads the old one's", "reads the old one's later", "never looks"],
)
def test_a_server_that_did_not_look_is_asked_again(monkeypatch, loaded, found, rounds):
    """What it is asked then is new to it, so that its own pages are not taken for the old one's."""
    one = Weights(monkeypatch, *loaded)

    first, *read = one._looked()

    assert tuple(read) == found
    assert first[0].ids == [[1]]
    again = [("old", False), ("new", False), ("new", False)] * (rounds - 1)
    assert one.asked == [("new", True), ("new", True), *again]


def test_poison_that_opens_breakers_is_no_miss():
    """Servers that are blamed after one attempt are what the scenario is for."""
    seen = POISONED | {"attempts": [1] * 4, "breakers": ["one open"]}

    assert judged(PoisonRequest.judge({"legs": 2}, seen)) is Verdict.BROKEN


@pytest.mark.parametrize(
    ("bad", "by"),
    [({}, 0.0), ({"logprobs": [-1.0, -2.25]}, 0.25), ({"ids": [[5, 7]]}, OTHER), ({"done": False}, OTHER),
     ({"error": {"code": "x"}}, OTHER), ({"logprobs": []}, OTHER)],
)  # fmt: skip
def test_an_answer_has_moved_by_its_probabilities_or_its_tokens(bad, by):
    """Before another token is chosen, its probability is another one."""
    whole = {"ids": [[5, 6]], "finish": ["length"], "done": True, "logprobs": [-1.0, -2.0]}

    assert moved(Answer(**whole), Answer(**whole | bad)) == by
