"""A run of game days: steps in their order, each bounded, all of it in the journal, and nothing left behind."""

import os
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.books import journal
from loadtests.gameday.bounds import TimeIsUp, sheltered, within
from loadtests.gameday.fleet import COMPILED, Fleet
from loadtests.gameday.run import JOURNAL, Run
from loadtests.gameday.scenario import Missed, Probe, Scenario
from loadtests.gameday.score import Outcome, Verdict
from loadtests.gameday.streams import Clients
from tests.loadtests.gameday.fakes import NoFleet, scenario


@pytest.fixture
def run(tmp_path):
    """Run scenarios; answers (outcomes, facts of the journal, what was left behind)."""

    def ran(*wanted: type[Scenario]) -> tuple[list[Outcome], list[dict[str, Any]], list[str]]:
        with Run(tmp_path / "report", 7, lambda _: None, make_fleet=NoFleet) as day:
            for one in wanted:
                day.scenario(one)
        return day.outcomes, list(journal.read(tmp_path / "report" / JOURNAL)), day.left

    return ran


def raising(error: BaseException) -> Any:
    def step(_: Any) -> None:
        raise error

    return step


def test_all_steps_are_in_the_journal_in_their_order(run):
    """From the hypothesis to the verdict, with what was seen, so that the verdict can be reckoned again."""
    (outcome,), facts, left = run(scenario("one"))

    assert [fact["kind"] for fact in facts] == [
        "gameday.hypothesis", "gameday.steady_state", "gameday.injected", "gameday.observed", "gameday.cleaned",
        "gameday.verdict", "gameday.ended",
    ]  # fmt: skip
    assert {fact["scenario"] for fact in facts[:-1]} == {"one"}
    assert facts[3]["seen"] == {"step": "observe", "did": None}
    assert facts[5]["verdict"] == "held"
    assert outcome.verdict is Verdict.HELD
    assert left == []


def test_without_a_steady_state_nothing_is_injected(run):
    """That is no pass, and the probe that did not hold is told."""
    sick = Probe("it is well", 0, 2, "503")

    (outcome,), facts, _ = run(scenario(steady=[sick]))

    assert "gameday.injected" not in [fact["kind"] for fact in facts]
    assert (outcome.verdict, outcome.share) == (Verdict.NO_STEADY_STATE, None)
    assert outcome.why == "it is well: 0 of 2 (503)"


@pytest.mark.parametrize(
    ("step", "verdict"),
    [("steady", Verdict.NO_STEADY_STATE), ("inject", Verdict.FAILED), ("observe", Verdict.BROKEN),
     ("judge", Verdict.BROKEN)],
)  # fmt: skip
def test_an_error_is_never_a_pass(run, step, verdict):
    """Before the fault it ends the try; after it, it is the system that did something unheard of."""
    (outcome,), _, _ = run(scenario(at={step: raising(RuntimeError("by surprise"))}))

    assert outcome.verdict is verdict
    assert outcome.why == "RuntimeError: by surprise"


def late(_: Any) -> None:
    time.sleep(60)


@pytest.mark.parametrize("goes_wrong", [late, raising(OSError("the server is gone"))], ids=["late", "error"])
@pytest.mark.parametrize(("damaged", "verdict"), [(True, Verdict.BROKEN), (False, Verdict.FAILED)])
def test_what_goes_wrong_once_the_fault_is_made_counts(run, goes_wrong, damaged, verdict):
    """Also while more of it is made: a server that dies of its first bad page is no bad try."""

    def inject(one: Scenario) -> None:
        one.ground.damaged = damaged
        goes_wrong(one)

    (outcome,), _, _ = run(scenario(at={"inject": inject}, limit_s=0.3))

    assert outcome.verdict is verdict
    assert (outcome.share is not None) is damaged


@pytest.mark.parametrize("step", ["inject", "observe", "judge"])
def test_a_fault_that_missed_is_no_verdict(run, step):
    """Where it fell beside what it was made for, nothing was tried."""
    (outcome,), _, _ = run(scenario(at={step: raising(Missed("all had ended"))}))

    assert (outcome.verdict, outcome.share, outcome.why) == (Verdict.FAILED, None, "all had ended")


def test_a_scenario_ends_when_its_time_is_over(run):
    """It is broken off in mid-step, counts as broken, and the next one is run."""
    began_s = time.monotonic()

    late, then = run(
        scenario("late", at={"observe": lambda _: time.sleep(60)}, limit_s=0.2), scenario("then")
    )[0]  # fmt: skip

    assert time.monotonic() - began_s < 30
    assert (late.verdict, late.why) == (Verdict.BROKEN, "it was not over after 0.2 s")
    assert then.verdict is Verdict.HELD


def test_what_cannot_be_tried_is_told_and_started_nowhere(run):
    """Its reason is in the journal, and none of its steps."""
    (outcome,), facts, _ = run(scenario(lacking="there is no redis-server"))

    assert (outcome.verdict, outcome.why) == (Verdict.NOT_TRIED, "there is no redis-server")
    assert [fact["kind"] for fact in facts][1:] == ["gameday.cleaned", "gameday.verdict", "gameday.ended"]


@pytest.mark.parametrize("step", ["steady", "inject", "observe"])
def test_what_a_scenario_did_is_undone_whatever_becomes_of_it(run, step):
    """Last in, first out; also where a step fails."""
    undone: list[str] = []

    def failing(one: Scenario) -> None:
        one.ground.cleanup.callback(undone.append, "first")
        one.ground.cleanup.callback(undone.append, "second")
        raise OSError("no")

    run(scenario(at={step: failing}))

    assert undone == ["second", "first"]


def test_a_fault_that_could_not_be_undone_is_no_pass(run):
    """The rest is undone all the same."""
    undone: list[str] = []

    def leaves(one: Scenario) -> None:
        one.ground.cleanup.callback(undone.append, "the rest")
        one.ground.cleanup.callback(raising(OSError("stuck")), None)

    (outcome,), _, _ = run(scenario(at={"inject": leaves}))

    assert (outcome.verdict, outcome.why) == (Verdict.FAILED, "not cleaned up: OSError: stuck")
    assert undone == ["the rest"]


@pytest.mark.parametrize(
    ("at", "verdict", "why"),
    [
        ({"observe": raising(OSError("no"))}, Verdict.BROKEN, "OSError: no; not cleaned up: OSError: stuck"),
        ({"judge": raising(Missed("beside"))}, Verdict.FAILED, "beside; not cleaned up: OSError: stuck"),
    ],
)
def test_what_could_not_be_undone_is_told_whatever_the_verdict(run, at, verdict, why):
    """Beside what else went wrong, and among what is left behind."""

    def leaves(one: Scenario) -> None:
        one.ground.cleanup.callback(raising(OSError("stuck")), None)

    (outcome,), _, left = run(scenario("one", at={"inject": leaves} | at))

    assert (outcome.verdict, outcome.why) == (verdict, why)
    assert left == ["one: not cleaned up: OSError: stuck"]


def test_all_is_undone_also_where_nobody_hangs_up_in_time(run, monkeypatch):
    """Streams that do not end are no reason to leave a server stopped."""
    undone: list[str] = []

    def late(clients: Clients) -> None:
        undone.append("hung up")
        raise TimeoutError("not in 5 s")

    def starts(one: Scenario) -> None:
        monkeypatch.setattr(Clients, "hang_up", late)
        one.ground.cleanup.callback(monkeypatch.undo)
        one.ground.cleanup.callback(undone.append, "the rest")

    (outcome,), _, left = run(scenario(at={"observe": starts}))

    assert undone == ["hung up", "the rest"]
    assert outcome.verdict is Verdict.FAILED
    assert left == ["fake: not cleaned up: TimeoutError: not in 5 s"]


def ended(tmp_path: Path, say: Any, make_fleet: Any) -> Run:
    """A run that Ctrl-C breaks off."""
    day = Run(tmp_path / "report", 7, say, make_fleet=make_fleet)

    def pressed() -> None:
        with day:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pressed()
    return day


def test_where_nobody_listens_any_more_all_is_ended_the_same(tmp_path):
    """`| tee` ends at Ctrl-C before we do, and Rich raises SystemExit at a broken pipe."""
    day = ended(tmp_path, raising(SystemExit(1)), NoFleet)

    assert (day._fleet.closed, day._scratch.exists(), day.left) == (1, False, [])


def test_a_server_that_does_not_end_is_told_and_the_rest_is_ended(tmp_path):
    """The report is still to be written."""

    class Stuck(NoFleet):
        def close(self) -> None:
            raise subprocess.TimeoutExpired("vllm", 10)

    day = ended(tmp_path, lambda _: None, Stuck)

    assert day.left == ["not ended: TimeoutExpired: Command 'vllm' timed out after 10 seconds"]
    assert not day._scratch.exists()


def test_a_store_is_removed_though_its_server_does_not_end(tmp_path):
    """It lies in shared memory."""

    class Stuck:
        def kill(self, _: int) -> None:
            pass

        def stop(self) -> None:
            raise subprocess.TimeoutExpired("vllm", 10)

    fleet: Any = Fleet(tmp_path / "kept", tmp_path, lambda _: None)
    fleet.engines = [Stuck()]
    fleet._store.mkdir()

    with pytest.raises(subprocess.TimeoutExpired):
        fleet.close()

    assert not fleet._store.exists()


def test_what_a_killed_server_leaves_goes_with_the_rest(tmp_path, monkeypatch):
    """Its sockets and files are in the run's own folder, where their names fit in there; not what torch compiled."""
    monkeypatch.delenv(COMPILED, raising=False)
    with tempfile.TemporaryDirectory() as short:
        told = Fleet(tmp_path, Path(short), lambda _: None)._variables()
        assert Path(told["TMPDIR"]).is_dir()
        assert told["TMPDIR"] == told["VLLM_RPC_BASE_PATH"] == f"{short}/vllm"
        assert not told[COMPILED].startswith(short)
        (long := Path(short) / ("x" * 90)).mkdir()
        assert "VLLM_RPC_BASE_PATH" not in Fleet(tmp_path, long, lambda _: None)._variables()


def test_ctrl_c_undoes_and_leaves(tmp_path):
    """In mid-step; what was run before stays in the outcomes, and what could not be undone is told."""
    undone: list[str] = []

    def pressed(one: Scenario) -> None:
        one.ground.cleanup.callback(undone.append, "undone")
        one.ground.cleanup.callback(raising(OSError("stuck")), None)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    day = Run(tmp_path / "report", 7, lambda _: None, make_fleet=NoFleet)

    def all_of_it() -> None:
        with day:
            day.scenario(scenario("whole"))
            day.scenario(scenario("pressed", at={"observe": pressed}))

    with pytest.raises(KeyboardInterrupt):
        all_of_it()

    assert undone == ["undone"]
    assert [one.name for one in day.outcomes] == ["whole"]
    assert day.left == ["pressed: not cleaned up: OSError: stuck"]
    assert list(journal.read(tmp_path / "report" / JOURNAL))[-1]["broken_off"] is True


def test_chance_is_by_seed_and_scenario(tmp_path):
    """The same seed draws the same, whatever ran before; another scenario draws otherwise."""
    drawn: list[float] = []
    draw = {"steady": lambda one: drawn.append(one.ground.rng.random())}
    for number, names in enumerate((["one", "two"], ["two"])):
        with Run(tmp_path / str(number), 7, lambda _: None, make_fleet=NoFleet) as day:
            for name in names:
                day.scenario(scenario(name, at=draw))

    assert drawn[1] == drawn[2] != drawn[0]


def test_shelter_lets_work_end_before_a_signal(tmp_path: Path):
    """Ctrl-C twice during a cleanup: it is finished, then the signal comes."""
    done = []

    def cleanup() -> None:
        with sheltered():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        cleanup()

    assert done == [True]


def test_time_is_up_passes_through_those_who_take_errors():
    """Who suppresses every Exception does not suppress the end of its time."""
    taken = []

    def suppressing() -> None:
        with within(0.05):
            try:
                time.sleep(10)
            except Exception as error:
                taken.append(error)

    with pytest.raises(TimeIsUp):
        suppressing()

    assert taken == []


def test_a_fact_that_the_journal_could_not_take_is_told(run):
    """Evidence that is missing is no clean end."""
    _, _, left = run(scenario(at={"observe": lambda _: "x" * 20_000}))

    assert left == [f"1 facts that {JOURNAL} does not have"]


def test_a_folder_of_ours_that_is_left_is_told(tmp_path):
    """Whatever a run leaves in shared memory by its name is named at the end."""
    left = Path(f"/dev/shm/holdfast-gameday-{os.getpid()}-forgotten")
    with Run(tmp_path / "report", 7, lambda _: None, make_fleet=partial(NoFleet)) as day:
        left.touch()
    try:
        assert day.left == [str(left)]
    finally:
        left.unlink()
