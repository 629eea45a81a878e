"""Predictions on a trace of our own making, with bursts and heavy tails; the public ones are in tests/prove."""

import json
from functools import cache

import pytest

from tests.prove.prediction import DRAWN, lines, measured, verdicts
from tests.prove.state import SEED
from tests.sim.forecast import ENOUGH, TARGETS, Score, forecast, score
from tests.sim.replay import Cache, Moment, When, replayed
from tests.sim.traces import Arrival, drawn, scaled, traces


@cache
def moments() -> list[Moment]:
    """One replay for all tests."""
    return replayed(drawn(SEED, DRAWN), SEED)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_nine_of_ten_are_within_for_each_size_and_the_loss_is_below_the_tables(target):
    """90 ± 2 % for each size of prompt that was seen often enough, and a pinball loss below a table of p90s by size."""
    judged = forecast(moments(), target)
    sizes = {bucket: score(many) for bucket, many in judged.items() if len(many) >= ENOUGH}

    assert len(sizes) >= 5
    assert {bucket: one.coverage for bucket, one in sizes.items() if not one.calibrated} == {}
    whole = score([one for many in judged.values() for one in many])
    assert whole.coverage == pytest.approx(0.9, abs=0.02)
    assert whole.ours_s < whole.table_s
    assert whole.ours_s < whole.refitted_s


def test_the_trace_is_bursty_and_heavy_tailed():
    """Else it would be easy: the busiest ten seconds have several times the mean, the longest prompts many times."""
    arrivals = drawn(SEED, DRAWN)
    each: dict[int, int] = {}
    for one in arrivals:
        each[int(one.at_s / 10)] = each.get(int(one.at_s / 10), 0) + 1
    mean = len(arrivals) / len(each)
    tokens = sorted(one.input_tokens for one in arrivals)

    assert max(each.values()) > 2 * mean
    assert tokens[-60] > 8 * tokens[len(tokens) // 2]
    assert drawn(SEED, 100) == drawn(SEED, 100) != drawn(SEED + 1, 100)


@pytest.mark.slow
def test_a_replay_tells_each_moment_once_and_in_order():
    """Each request is asked, has its first token, and is done; a first token takes time."""
    seen = moments()

    assert [one.at_s for one in seen] == sorted(one.at_s for one in seen)
    for when in When:
        assert sorted(one.known.number for one in seen if one.when is when) == list(range(DRAWN))
    assert all(one.value_s is not None and one.value_s > 0 for one in seen if one.when is When.FIRST)


def test_a_score_is_what_its_numbers_say():
    """Coverage within 2 %, or what so few may show; sharper where the loss is less."""
    assert Score(1000, 885, 1.0, 2.0, 2.0).calibrated
    assert not Score(1000, 860, 1.0, 2.0, 2.0).calibrated
    assert Score(50, 42, 1.0, 2.0, 2.0).calibrated
    assert Score(50, 42, 1.0, 2.0, 2.0).sharper
    assert not Score(50, 42, 2.0, 2.0, 3.0).sharper


def test_prefixes_are_forgotten_in_the_order_of_their_use():
    """A hit is the longest beginning that is there."""
    kept = Cache(3)

    assert [kept.hit(prefix) for prefix in ((1, 2), (1, 2, 3), (1, 9), (1, 2))] == [0, 2, 1, 1]


def test_public_traces_are_read(tmp_path):
    """Azure's and Mooncake's, by the names of their files; what asks or brings nothing is left out."""
    (tmp_path / "a.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:04.5000000,7,3\n2023-11-16 18:17:03.0000000,5,2\n2023-11-16 18:17:05.0000000,5,0\n"
    )
    said = {"timestamp": 1500, "input_length": 600, "output_length": 4, "hash_ids": [1, 2]}
    (tmp_path / "b.jsonl").write_text(json.dumps(said) + "\n")

    assert dict(traces(tmp_path)) == {
        "a": [Arrival(0.0, 5, 2), Arrival(1.5, 7, 3)],
        "b": [Arrival(1.5, 600, 4, (1, 2))],
    }


def test_a_trace_is_scaled_to_a_smaller_machine_and_keeps_its_shape():
    """As fast and as large in the mean as is asked for; what was twice as long, or came as a burst, still is."""
    trace = [Arrival(0.0, 1_000, 10), Arrival(0.0, 2_000, 20), Arrival(30.0, 3_000, 30), Arrival(100.0, 90_000, 40)]

    small = scaled(trace, per_s=2.0, input_mean=2_400, output_mean=50, most=5_000)

    assert small == [Arrival(0.0, 100, 20), Arrival(0.0, 200, 40), Arrival(0.6, 300, 60), Arrival(2.0, 5_000, 80)]


def test_a_folder_without_traces_is_refused(tmp_path):
    """By its name, and with what should be there."""
    with pytest.raises(ValueError, match=r"no \*\.csv of Azure's"):
        list(traces(tmp_path))


@pytest.mark.slow
def test_the_report_says_what_was_measured():
    """A row for each size, and a verdict for each claim; the worst is named where one does not hold."""
    one = json.loads(json.dumps(measured(drawn(1, 600), 0.5)))
    done = {"prediction": {"loads": {"50%": {"mine": one}}}}
    rows = [line for line in lines(done) if line.startswith("| ")]
    blunt = json.loads(json.dumps(done))
    blunt["prediction"]["loads"]["50%"]["mine"]["first token"]["all"] = [100, 90, 3.0, 2.0, 2.0]

    assert sum(line.startswith("| mine, 50% busy") for line in rows) == len(TARGETS)
    assert sum(" to " in line for line in rows) == sum(len(one[target]["sizes"]) for target in TARGETS)
    assert len(verdicts(done)) == 2 * len(TARGETS)
    assert [claim for claim, good in verdicts(blunt).items() if not good] == [
        "50% busy, first token: the pinball loss is below the table's, on each trace (of the table's: mine: 1.500)"
    ]
