"""More requests than servers can answer, for some seconds: `python -m tests.prove overload`, in small."""

import asyncio
import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from guards.attainment import Verdict
from loadtests.batching import Shape
from loadtests.processes import StubProcess, start_stub
from loadtests.stub_computer import COSTS
from tests.loadtests.raw_client import ask
from tests.open_loop import Sent, offer
from tests.processes import ForkedGateway as Gateway
from tests.processes import until
from tests.two_tenants import BATCH, INTERACTIVE, SERVERS, capacity_per_s, parts, wishes

SEATS = 8
SHAPE = Shape(batched_tokens_max=512, seqs_max=SEATS, kv_blocks=600)
SLOW = replace(COSTS, step_s=0.02, stall_share=0.0)  # a few answers a second: also a busy machine can ask for more
LOAD, SECONDS, PATIENCE_S = 5.0, 6.0, 6.0
TIMES = 2.0  # as long as usual, that promises are
LOOK_S = 0.2


async def crowded(stub: StubProcess, over: asyncio.Event) -> int:
    """How many requests a server has at most, those that wait there among them, until it is over."""
    most = 0
    while not over.is_set():
        body = (await ask(stub.port, "/metrics")).body.decode()
        rows = dict(line.rsplit(" ", 1) for line in body.splitlines() if line.startswith("vllm:num_requests"))
        most = max(most, int(sum(map(float, rows.values()))))
        await asyncio.sleep(LOOK_S)
    return most


async def flood(gateway: Gateway, stubs: list[StubProcess]) -> tuple[list[Sent], int]:
    """Both tenants for some seconds; and how many requests any server had at most."""
    over = asyncio.Event()
    looking = [asyncio.create_task(crowded(stub, over)) for stub in stubs]
    asked = wishes(LOAD, SECONDS, 7, per_s=capacity_per_s(SHAPE, SLOW), times=TIMES)
    sent = await offer(gateway.port, asked, PATIENCE_S)
    over.set()
    return sent, max(await asyncio.gather(*looking))


class Flooded(NamedTuple):
    """What came of it. most: requests at any server, at once. settled: facts. told: what operators are."""

    sent: list[Sent]
    most: int
    settled: list[dict[str, Any]]
    told: dict[str, Any]


def flooded(folder: Path, tokenizer: Path, **admission: Any) -> Flooded:
    """Servers of a few seats, and a gateway before them, under five times what they can do."""
    limits = json.dumps(asdict(SHAPE) | asdict(SLOW))
    with ExitStack() as stack:
        stubs = [stack.enter_context(start_stub(engine=limits)) for _ in range(SERVERS)]
        urls, config = [stub.url for stub in stubs], parts(times=TIMES, **admission)
        gateway = stack.enter_context(Gateway(folder, urls, tokenizer=tokenizer, standby=False, **config))
        sent, most = asyncio.run(flood(gateway, stubs))

        def settled() -> list[dict[str, Any]]:
            found = [fact for fact in gateway.journal() if fact["kind"] == "request.settled"]
            return found if len(found) == len(sent) else []

        facts = until(settled)
        told = json.loads(gateway.get("/admin/sla", gateway.admin_url)[1])
        assert gateway.stop() == 0
        assert gateway.faults() == []
        return Flooded(sent, most, facts, told)


@pytest.fixture(scope="module")
def admitted(tokenizer, tmp_path_factory) -> Flooded:
    """With admission, which knows how many seats there are."""
    return flooded(tmp_path_factory.mktemp("admitted"), tokenizer, on=True, per_replica=SEATS)


def shares(sent: list[Sent], verdict: Verdict) -> dict[str, float]:
    """Of each tenant's requests, those of which this became."""
    found = Counter(one.wish.who for one in sent if one.verdict is verdict)
    return {who: found[who] / sum(one.wish.who == who for one in sent) for who in (INTERACTIVE, BATCH)}


@pytest.mark.slow
def test_what_is_too_much_does_not_reach_the_servers(admitted):
    """None has many more requests than it has seats: a few are raced, and asked to see how it is."""
    assert 0 < admitted.most <= 2 * SEATS


@pytest.mark.slow
def test_who_is_refused_is_the_flood_and_is_told_why(admitted):
    """Those in a hurry go first; refusals are 503, and say that it would have been too late."""
    refused = [one for one in admitted.sent if one.refused]

    assert {(one.status, json.loads(one.said)["error"]["code"]) for one in refused} == {(503, "deadline_unreachable")}
    assert shares(admitted.sent, Verdict.REFUSED)[INTERACTIVE] < shares(admitted.sent, Verdict.REFUSED)[BATCH]
    assert shares(admitted.sent, Verdict.KEPT)[INTERACTIVE] > shares(admitted.sent, Verdict.KEPT)[BATCH]


@pytest.mark.slow
def test_every_promise_is_counted_once(admitted):
    """What operators are told of each class is what the journal says of its requests; and nobody waits any more."""
    counted = Counter((one["class"], one["promise"]) for one in admitted.settled if "promise" in one)
    classes = {name for name, _ in counted}

    assert admitted.told["waiting"] == 0
    assert {one["class"]: (one["kept"], one["made"]) for one in admitted.told["classes"]} == {
        name: (counted[name, "kept"], sum(times for (which, _), times in counted.items() if which == name))
        for name in classes
    }
    assert len(classes) == 2


@pytest.mark.slow
def test_without_admission_all_wait_at_the_servers(tokenizer, tmp_path):
    """So it is admission that does it: nobody is refused, and servers have many times what they have seats for."""
    found = flooded(tmp_path, tokenizer, on=False)

    assert not any(one.refused for one in found.sent)
    assert found.most > 2 * SEATS
