"""The bench: words shaped as vLLM's, clients that notice what is wrong, accounts, and a report that tells."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from gateway.stream.wire import decode_chunk, without_ids
from loadtests.bench import report
from loadtests.bench.account import memory_bytes, times_s, tree
from loadtests.bench.load import Job, Seen, run
from loadtests.bench.others import version_of
from loadtests.bench.peers import Missing, Peer, Recipe
from loadtests.bench.rounds import LOADS, Memory, Results
from loadtests.bench.upstream import Upstream
from loadtests.bench.words import SEEN, words

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = {one["name"]: one for one in json.loads((ROOT / "tests/loadtests/vllm_samples.json").read_text())}


@asynccontextmanager
async def upstream(protocol: Callable[[], asyncio.Protocol] = Upstream) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def shape(value: object) -> object:
    """Names and their order, without the values."""
    if isinstance(value, dict):
        return [(name, shape(one)) for name, one in value.items()]
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


@pytest.mark.parametrize(("sample", "ids"), [("chat_ids", True), ("chat_plain_stream", False)])
def test_its_chunks_are_shaped_as_vllms(sample: str, ids: bool):
    """A measured chunk has the fields of a recorded one, in their order; it is one HTTP chunk, whole."""
    recorded = SAMPLES[sample]["body"].split("\n\n")[1].removeprefix("data: ")

    size, _, framed = words(ids).at(7).partition(b"\r\n")
    event = framed.removesuffix(b"\r\n")

    assert int(size, 16) == len(event)
    assert shape(json.loads(event.removeprefix(b"data: "))) == shape(json.loads(recorded))
    assert SEEN.search(event)[1] == b"0000007"


def test_what_the_gateway_cuts_out_leaves_what_a_passthrough_passes_on():
    """A chunk with ids, less its ids, is the chunk without: both clients are sent the same bytes."""
    (_size, with_ids), (_, without) = (words(ids).chunk.split(b"\r\n", 1) for ids in (True, False))
    event = with_ids.split(b"\n\n")[0]

    assert decode_chunk(event.replace(b"%07d", b"").replace(b"%019d", b"")[6:]).choices[0].token_ids
    assert without_ids(event, has_ids=True) == without.split(b"\n\n")[0]


@pytest.mark.slow
async def test_a_paced_stream_is_measured():
    """Chunks in the window are counted with their delay, and every stream is whole."""
    async with upstream() as port:
        seen = await run(Job(port, connections=4, every_s=0.02, open_s=0.1, window_s=0.4))

    assert (seen.failed, seen.answers, seen.open) == (0, 4, 4)
    assert seen.units > 20
    assert 0 < seen.late_ms[0] <= seen.late_ms[1]


@pytest.mark.slow
@pytest.mark.parametrize("ids", [False, True])
async def test_plain_answers_are_measured(ids: bool):
    """Answers in the window are counted, and their text is looked at."""
    async with upstream() as port:
        seen = await run(Job(port, stream=False, ids=ids, connections=4, open_s=0.1, window_s=0.2))

    assert seen.failed == 0
    assert seen.answers > seen.units > 10


class Skips(Upstream):
    """Leaves out a chunk."""

    def _say(self) -> None:
        self._said += self._said == 3
        super()._say()


class Cuts(Upstream):
    """Hangs up in the middle."""

    def _say(self) -> None:
        super()._say()
        if self._said == 5:
            self._transport.close()


class Tells(Upstream):
    """Sends ids to who did not ask."""

    def on_body(self, body: bytes) -> None:
        super().on_body(body.replace(b'"max_tokens"', b'"return_token_ids":true,"max_tokens"'))


class Refuses(Upstream):
    """Answers an error."""

    def on_message_complete(self) -> None:
        self._transport.write(b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fault"),
    [(Skips, "chunk 4 came after 2"), (Cuts, "ended early"), (Tells, "not asked for"), (Refuses, "status 503")],
)
async def test_a_stream_that_is_not_whole_is_noticed(kind: type[Upstream], fault: str):
    """A gap, a cut, ids that nobody asked for, an error: each is a failed answer."""
    async with upstream(kind) as port:
        seen = await run(Job(port, connections=2, every_s=0.01, open_s=0.1, window_s=0.1))

    assert seen.failed == 2
    assert fault in seen.faults[0]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "fault"), [(Tells, "status 200"), (Refuses, "status 503")])
async def test_a_plain_answer_that_is_wrong_is_noticed(kind: type[Upstream], fault: str):
    """The same for plain answers."""
    async with upstream(kind) as port:
        seen = await run(Job(port, stream=False, connections=2, open_s=0.1, window_s=0.1))

    assert seen.failed == 2
    assert fault in seen.faults[0]


BUSY = """
import subprocess, sys, threading, time
child = subprocess.Popen([sys.executable, "-c", "end=__import__('time').process_time\\nwhile end()<.2: pass\\ninput()"],
                         stdin=subprocess.PIPE)
def burn():
    while time.thread_time() < .2: pass
    time.sleep(60)
threading.Thread(target=burn, daemon=True).start()
kept = bytearray(b"x") * (32 << 20)
print(flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_the_account_is_of_all_threads_and_children():
    """Seconds of a thread and of a child are counted; memory too."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            until = time.monotonic() + 30
            pids = tree(process.pid)
            assert len(pids) == 2
            while (times_s(pids)[0] < 0.4 or times_s(pids[1:])[0] < 0.19) and time.monotonic() < until:
                time.sleep(0.02)

            assert times_s(pids)[0] > 0.4 > times_s(pids[1:])[0] > 0.19
            assert times_s(pids)[1] > 0  # two threads began on one machine with others
            assert memory_bytes(pids[:1]) > 32 << 20
        finally:
            os.killpg(process.pid, 9)


def measured(cpu: float, late: float = 1.0) -> dict[str, list[Seen]]:
    seen = [Seen(units=1000, window_s=1.0, cpu_s=cpu * factor, late_ms=(late, late + 1)) for factor in (0.9, 1.0, 3.0)]
    return {"plain": seen, "paced": seen}


def test_the_report_compares_round_by_round():
    """A ratio is the median of ratios in a round, so that a busy moment that hit both does not count."""
    results = Results({"direct": measured(0, 0.5), "aiohttp pass-through": measured(0.1), "holdfast": measured(0.05)})
    results.seen["holdfast"]["plain"][1].cpu_s *= 4  # a busy moment of its own
    results.memory["holdfast"] = [Memory(1000, 50_000_000, 73_000_000, 60_000_000, 0)]

    said = report.verdicts(results)

    assert said == {
        "must: CPU, plain: 0.50 of aiohttp pass-through's, at most 1.00": True,
        "must: CPU, paced: 0.50 of aiohttp pass-through's, at most 1.00": True,
        "must: added delay, p50: 0.50 ms, at most 0.3": False,
        "must: added delay, p99: 0.50 ms, at most 2": True,
        "must: an open stream takes 23.0 KB, at most 24": True,
        "must: every answer is whole: 0 are not": True,
    }


@pytest.mark.parametrize("workers", ["two workers", "two workers, pinned"])
def test_two_workers_are_judged_by_what_an_answer_costs_them(workers):
    """Their cores are shared with clients, so that how many answers there were in a second is told, and not judged."""
    results = Results({"holdfast": measured(0.5), f"holdfast, {workers}": {"plain": measured(0.52)["plain"]}})

    (must, kept), (goal, _) = [one for one in report.verdicts(results).items() if "two workers" in one[0]]

    assert must.startswith(f"must: {workers}: 1.92 times one's answers")
    assert kept
    assert "leave them 0.52: 1.00 times as many" in goal
    assert report.verdicts(results)[goal] is False


def test_one_table_has_all_gateways_in_short():
    """CPU for each load and memory, with the spread; and which version a gateway of others is."""
    results = Results({"direct": measured(0, 0.5), "holdfast": measured(0.05), "smg": {}})
    results.seen["smg"]["plain"] = measured(0.2)["plain"]
    results.memory["holdfast"] = [Memory(1000, 50_000_000, 73_000_000, 60_000_000, 0)]
    results.versions["smg"] = "1.13.0"

    short, *_ = report.tables(results, {"plain": "requests", "plain, 100/s": "requests", "paced": "chunks"})

    assert short.rows == [
        ["", "plain, ms / 1k requests", "paced, ms / 1k chunks", "KB / open stream"],
        ["holdfast", "**50.0** (45.0..150.0)", "**50.0** (45.0..150.0)", "23.0"],
        ["smg 1.13.0", "**200.0** (180.0..600.0)", "–", "–"],
    ]


def test_the_tables_show_median_and_spread():
    """Each load has a table with a row for each peer, CPU first."""
    results = Results({"direct": measured(0, 0.5), "holdfast": measured(0.05)})

    _, plain, _, held = report.tables(results, {"plain": "requests", "paced": "chunks"})

    assert report.markdown(plain).startswith("## plain: CPU per thousand requests\n\n|  | CPU, ms |")
    assert plain.rows[2][:4] == ["holdfast", "**50.0** (45.0..150.0)", "1000", "0.05"]
    assert len(held.rows) == 1


def test_a_gateway_that_is_not_installed_says_how_it_would_be(tmp_path):
    """And nothing is started."""
    recipe = Recipe("another", lambda place: ["false"], version=version_of("no-such-gateway"))

    with pytest.raises(Missing, match=r"no-such-gateway is not installed.*scripts/install\.py peers"):
        Peer(recipe, 1, tmp_path, [0])


def test_who_cannot_carry_all_takes_part_in_some():
    """In its loads, and its first rounds."""
    recipe = Recipe("another", None, rounds=1, loads=("plain",))

    assert [recipe.takes_part(*one) for one in (("plain", 0), ("plain", 1), ("paced", 0))] == [True, False, False]


@pytest.mark.slow
@pytest.mark.prove
def test_the_whole_of_it_runs(tmp_path: Path):
    """A quick bench of the gateway beside a pass-through ends well and writes what it saw."""
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "loadtests.bench", "--quick", "--streams=20", f"--json={out}"]
    command += ["--peers", "direct", "aiohttp pass-through", "holdfast"]

    subprocess.run([*command, f"--report={tmp_path / 'bench.md'}"], cwd=ROOT, check=True, timeout=300)

    said = json.loads(out.read_bytes())
    seen = {peer: {load: msgspec.convert(ones, list[Seen]) for load, ones in loads.items()}
            for peer, loads in said["seen"].items()}  # fmt: skip
    assert list(seen) == ["direct", "aiohttp pass-through", "holdfast"]
    assert all(one.units and not one.failed for loads in seen.values() for ones in loads.values() for one in ones)
    assert all(one.cpu_s for one in seen["holdfast"]["paced"])
    looks = {load.name: load.quick().looks * said["rounds"] for load in LOADS}
    assert all({name: len(ones) for name, ones in loads.items()} == looks for loads in seen.values())
    assert said["verdicts"]["must: every answer is whole: 0 are not"]
    assert "| holdfast |" in (tmp_path / "bench.md").read_text()
