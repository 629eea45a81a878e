"""Who comes when, and what they do: the same for the same seed, however many processes share it."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from loadtests.traffic.arrivals import poisson
from loadtests.traffic.plan import Mine, Plan
from loadtests.traffic.scenarios import MIXED, NAMED, REPLAY, SCENARIOS, Answer, Ask, Sizes
from loadtests.traffic.traces import Row, Scale


def played(script, good: bool = True) -> list[list[Ask]]:
    """All that a script asks when each answer is the same."""
    found = []
    try:
        asks = next(script)
        while True:
            found.append(asks)
            asks = script.send([Answer(good, f"answer {len(found)}") for _ in asks])
    except StopIteration:
        return found


def test_arrivals_come_at_the_rates_they_are_to():
    """One rate after the other, each for its time; gaps of a Poisson process vary as much as they are long."""
    due = list(poisson((10.0, 0.0, 40.0), 100.0, "seed"))
    gaps = [later.at_s - earlier.at_s for earlier, later in pairwise(due) if later.step == earlier.step == 0]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5

    assert [one.number for one in due] == list(range(len(due)))
    assert [sum(one.step == step for one in due) for step in range(3)] == [
        pytest.approx(1000, abs=100),
        0,
        pytest.approx(4000, abs=200),
    ]
    assert all(one.step * 100 <= one.at_s < one.step * 100 + 100 for one in due)
    assert deviation == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("scenario", [name for name in NAMED if name != REPLAY])
def test_processes_share_a_plan_and_change_nothing_of_it(scenario):
    """Together they have each client once, and ask what one of them alone would ask."""
    plan = Plan(scenario, 3, (5.0, 10.0), 4.0, Sizes(scale=0.05, context=200))
    alone = [(one.due, one.name, one.tenant, played(one.script)) for one in plan.clients()]
    shared = [(one.due, one.name, one.tenant, played(one.script)) for n in range(3) for one in plan.clients(Mine(n, 3))]

    assert sorted(shared, key=lambda one: one[0].number) == alone
    assert len(alone) > 40
    other = [played(one.script) for one in replace(plan, seed=4).clients()]
    assert other[:5] != [asked for *_, asked in alone[:5]]


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
@pytest.mark.parametrize("sizes", [Sizes(), Sizes(scale=0.01, context=64, think_s=0, exact=False)])
def test_every_scenario_asks_what_fits(scenario, sizes):
    """At least one token, less than the window; and it ends, with answers and without."""
    for seed in range(20):
        asked = played(SCENARIOS[scenario](random.Random(seed), sizes))
        assert 1 <= len(asked) <= 40
        for ask in (one for asks in asked for one in asks):
            assert 1 <= ask.body["max_tokens"] < sizes.context
            assert ("ignore_eos" in ask.body) == sizes.exact
        failed = played(SCENARIOS[scenario](random.Random(seed), sizes), good=False)
        assert len(failed) == 1


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_no_client_waits_before_it_asks_first(scenario):
    """It is asked when it is due, or the generator would seem late."""
    for seed in range(20):
        assert {ask.after_s for ask in next(SCENARIOS[scenario](random.Random(seed), Sizes()))} == {0.0}


def test_conversations_grow_by_what_was_said_and_share_system_prompts():
    """Each turn begins with all of the one before: a server's prefix cache has it."""
    systems = set()
    for seed in range(40):
        asked = [asks[0].body["messages"] for asks in played(SCENARIOS["chat"](random.Random(seed), Sizes()))]
        systems.add(asked[0][0]["content"])
        for number, (before, after) in enumerate(pairwise(asked), 1):
            assert after[: len(before)] == before
            assert after[len(before)] == {"role": "assistant", "content": f"answer {number}"}

    assert 1 < len(systems) <= 4


def test_agents_tools_can_be_said_in_openais_fields():
    """Every tool message names the call that it answers."""
    asked = played(SCENARIOS["agents"](random.Random(1), Sizes(tool_calls=True)))
    last = asked[-1][0].body
    calls = [one["tool_calls"][0]["id"] for one in last["messages"] if "tool_calls" in one]

    assert last["tools"]
    assert calls == [one["tool_call_id"] for one in last["messages"] if one["role"] == "tool"]
    assert len(calls) == len(asked) - 1


def test_floods_come_at_once_and_leavers_leave():
    """A batch is one list of asks; half of those who hang up count tokens, half look at the clock."""
    (flood,) = played(SCENARIOS["batch"](random.Random(1), Sizes()))
    leavers = [played(SCENARIOS["leavers"](random.Random(seed), Sizes()))[0][0] for seed in range(40)]

    assert 16 <= len(flood) <= 48
    assert all((one.leave_after is None) != (one.leave_s is None) for one in leavers)
    assert 10 < sum(one.leave_s is None for one in leavers) < 30


def test_mixed_tenants_each_have_their_habit():
    """By their shares; the runaway's is allowed to be stopped."""
    found = list(Plan("tenants", rates_per_s=(100.0,), each_s=10.0).clients())
    habits = {(one.tenant, one.scenario) for one in found}

    assert habits == {(tenant, scenario) for tenant, scenario, _ in MIXED}
    assert sum(one.tenant == "alice" for one in found) / len(found) == pytest.approx(0.45, abs=0.05)


def test_a_trace_is_replayed_faster_and_smaller():
    """At its own times, divided; answers are of its lengths, scaled."""
    rows = (Row(0.0, 1024, 100, (0, 1)), Row(8.0, 512, 1, (0,)))
    plan = Plan(REPLAY, rows=rows, scale=Scale(speed=4.0, size=0.1))
    first, second = plan.clients()
    asked = [played(one.script)[0][0].body for one in (first, second)]

    assert (first.due.at_s, second.due.at_s, plan.takes_s) == (0.0, 2.0, 2.0)
    assert [one["max_tokens"] for one in asked] == [10, 1]
    assert asked[0]["prompt"].startswith(asked[1]["prompt"])
