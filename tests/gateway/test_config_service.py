"""`admission:` and `tiers:`: what they come to, and that every mistake in them is told in its place."""

import hashlib
from pathlib import Path

import pytest

from gateway.config_service import AdmissionConfig, TierConfig
from guards.admission import Bounds
from guards.place import Rank
from guards.sla import Objective, ServiceClass, Slope, Tier
from guards.warmth import Bounds as Bounds_
from guards.warmth import Policy
from tests.gateway.test_config import BASE, errors_of, loaded

SHA = hashlib.sha256(b"x").hexdigest()
KEY = f"keys: [{{user: alice, sha256: '{SHA}', tier: gold}}]\n"
CHAT = "classes: [{name: chat, first_ms: 500}]"


def test_what_is_not_written_is_as_the_guards_have_it(tmp_path: Path):
    """Requests wait in the gateway; nothing is promised, and all keys are alike."""
    config = loaded(tmp_path, BASE)

    assert (config.admission, config.admission.on, config.tiers) == (AdmissionConfig(), True, ())
    assert config.admission.bounds(9000) == Bounds(waiting=4500)
    assert TierConfig(name="x").rank == Rank("x")


def test_a_tier_is_what_turns_are_told(tmp_path: Path):
    """Times in milliseconds become seconds, those per thousand tokens seconds per token."""
    config = loaded(
        tmp_path,
        BASE
        + "admission: {on: off, waiting: 9, wait_s: 8, rise_s: 7, per_model: 6, per_agent: 5, per_replica: 4}\n"
        + "tiers:\n"
        + "  - name: gold\n"
        + "    priority: 0\n"
        + "    weight: 2.5\n"
        + "    permits: 12\n"
        + "    asked: {ms: 200, ms_per_1k_tokens: 50}\n"
        + "    classes:\n"
        + "      - {name: chat, input_max: 4000, output_max: 500, first_ms: 400, first_ms_per_1k_tokens: 200,"
        + " between_ms: 40, total_ms: 1000, total_ms_per_1k_tokens: 30}\n"
        + "      - {name: large}\n",
    )

    chat = Objective(Slope(0.4, 0.0002), 0.04, Slope(1.0, 0.00003))
    classes = ServiceClass("chat", chat, 4000, 500), ServiceClass("large", Objective())
    assert config.admission.bounds(9000) == Bounds(9, 8.0, 7.0, 6, 5, 4)
    assert config.admission.on is False
    assert config.tiers[0].rank == Rank("gold", 0, 2.5, 12, Tier("gold", classes, Slope(0.2, 0.00005)))


ONE_ERROR = {
    "no room to wait": ("admission: {waiting: 0}", "7:22: admission.waiting: must be at least 1."),
    "too much room": ("admission: {waiting: 1000001}", "7:22: admission.waiting: must be at most 1000000."),
    "no time to wait": ("admission: {wait_s: 0}", "7:21: admission.wait_s: must be above 0."),
    "a wait without an end": (
        "admission: {wait_s: 3601}",
        "7:21: admission.wait_s: must be at most 3600. Write a number above 0, 3600 at most.",
    ),
    "a wait that is no number": (
        "admission: {wait_s: soon}",
        "7:21: admission.wait_s: must be a number. Write a number above 0, 3600 at most.",
    ),
    "a rise at once": ("admission: {rise_s: 0}", "7:21: admission.rise_s: must be above 0."),
    "neither on nor off": ("admission: {on: perhaps}", "7:17: admission.on: must be true or false."),
    "fair by nobody": ("admission: {fair_by: model}", "7:22: admission.fair_by: must be key, user, team or org."),
    "no permit of a model": ("admission: {per_model: 0}", "7:24: admission.per_model: must be at least 1."),
    "no permit of an agent": ("admission: {per_agent: 0}", "7:24: admission.per_agent: must be at least 1."),
    "no permit of a replica": ("admission: {per_replica: 0}", "7:26: admission.per_replica: must be at least 1."),
    "a slip": (
        "admission: {per_replicas: 1}",
        '7:13: admission.per_replicas: unknown field. Did you mean "per_replica"?',
    ),
    "a tier without a name": ("tiers: [{priority: 1}]", "7:9: tiers[0].name: required, but missing."),
    "a tier with half a name": ("tiers: [{name: a b}]", "7:16: tiers[0].name: "),
    "a priority that is none": ("tiers: [{name: a, priority: 4}]", "7:29: tiers[0].priority: must be at most 3."),
    "a weight of nothing": ("tiers: [{name: a, weight: 0}]", "7:27: tiers[0].weight: must be at least 0.01."),
    "no permits": ("tiers: [{name: a, permits: 0}]", "7:28: tiers[0].permits: must be at least 1."),
    "one name twice": (
        "tiers: [{name: a}, {name: a}]",
        "7:27: tiers[1].name: two tiers have one name. tiers[0] has it. Give each a name of its own.",
    ),
    "a class without a name": (
        "tiers: [{name: a, classes: [{first_ms: 1}]}]",
        "7:29: tiers[0].classes[0].name: required, but missing.",
    ),
    "two classes of one name": (
        f"tiers: [{{name: a, {CHAT[:-1]}, {{name: chat}}]}}]",
        "7:28: tiers[0].classes: two classes have one name. Give each a name of its own: they label what was kept.",
    ),
    "a slope without a base": (
        "tiers: [{name: a, classes: [{name: c, first_ms_per_1k_tokens: 1}]}]",
        "7:29: tiers[0].classes[0]: first_ms_per_1k_tokens means nothing without first_ms."
        " Add first_ms: it is the base.",
    ),
    "a limit that is shorter than a promise": (
        "tiers: [{name: a, classes: [{name: c, total_ms: 5000, timeouts: {total_s: 4}}]}]",
        "7:29: tiers[0].classes[0]: timeouts.total_s is shorter than total_ms. What ends it is not before what is due.",
    ),
    "a time of nothing": (
        "tiers: [{name: a, classes: [{name: c, between_ms: 0}]}]",
        "7:51: tiers[0].classes[0].between_ms: must be above 0.",
    ),
    "a size of nothing": (
        "tiers: [{name: a, classes: [{name: c, input_max: 0}]}]",
        "7:50: tiers[0].classes[0].input_max: must be at least 1.",
    ),
    "a time to ask for that is none": (
        f"tiers: [{{name: a, asked: {{ms: 0}}, {CHAT}}}]",
        "7:31: tiers[0].asked.ms: must be above 0.",
    ),
    "asking for what is not promised": (
        "tiers: [{name: a, asked: {ms: 100}}]",
        "7:9: tiers[0]: asked means nothing without classes. Add classes: what they may ask for is of one.",
    ),
    "a class that nobody reaches": (
        "tiers: [{name: a, classes: [{name: all}, {name: small, input_max: 9}]}]",
        "7:28: tiers[0].classes: no request is of class small. Write it before all, which takes all that it would.",
    ),
    "a key of no tier": (KEY, "7:104: keys[0].tier: there is no such tier. Name one of tiers: none yet."),
    "a budget of another tier": (
        "tiers: [{name: silver}]\nbudgets: [{org: acme, tier: gold}]",
        "8:29: budgets[0].tier: there is no such tier. Name one of tiers: silver.",
    ),
    "servers that schedule, perhaps": (None, "3:16: models[0].scheduled: must be true or false."),
}  # fmt: skip


@pytest.mark.parametrize(("text", "says"), ONE_ERROR.values(), ids=ONE_ERROR)
def test_one_slip_gives_one_error(tmp_path: Path, text: str | None, says: str):
    """Its place, its field, what is wrong, what to write."""
    said = BASE.replace("tiny\n", "tiny\n    scheduled: perhaps\n") if text is None else BASE + text + "\n"

    (error,) = errors_of(tmp_path, said)

    assert error.startswith(f"holdfast.yaml:{says}")


@pytest.mark.parametrize("named", ["[a]", "{a: b}", "~"])
@pytest.mark.parametrize(
    "where", ["tiers: [{{name: {}}}, {{name: {}}}]", "tiers: [{{name: a}}]\nbudgets: [{{org: b, tier: {}}}]"]
)
def test_what_is_no_name_at_all_is_told_as_that(tmp_path: Path, named: str, where: str):
    """A list where a name should be is one error of its field, and no second one of its being there twice."""
    errors = errors_of(tmp_path, BASE + where.format(named, named) + "\n")

    assert errors
    assert not any("two tiers" in error or "no such tier" in error for error in errors)


def test_hot_standby_is_a_tiers_and_warming_is_everybodys(tmp_path: Path):
    """What is not written is as the guards have it; off where a tier does not say so."""
    tiers = "tiers: [{name: gold, hot_standby: {every_tokens: 512}}, {name: silver, hot_standby: {}}, {name: lead}]\n"
    config = loaded(tmp_path, BASE + tiers + "warming: {at_once: 3, within_s: 2}\n")
    gold, silver, lead = (one.hot_standby for one in config.tiers)

    assert gold is not None
    assert silver is not None
    assert (gold.policy, silver.policy, lead) == (Policy(512, 2.0), Policy(), None)
    assert config.warming.bounds == Bounds_(3, 4, 2.0)
    assert loaded(tmp_path, BASE).warming.bounds == Bounds_()


@pytest.mark.parametrize(("text", "where"), [
    ("warming: {at_once: 0}\n", "warming.at_once"), ("warming: {within_s: 0}\n", "warming.within_s"),
    ("tiers: [{name: gold, hot_standby: {every_tokens: 1}}]\n", "tiers[0].hot_standby.every_tokens"),
    ("tiers: [{name: gold, hot_standby: {often: 1}}]\n", "tiers[0].hot_standby.often"),
])  # fmt: skip
def test_mistakes_in_what_is_loaded_ahead_are_told_in_their_place(tmp_path: Path, text, where):
    """With file and line."""
    (line,) = errors_of(tmp_path, BASE + text)

    assert where in line
    assert f"holdfast.yaml:{BASE.count(chr(10)) + 1}:" in line
