"""A request for one token, and what /metrics says meanwhile."""

import json

import pytest

from gateway.fleet.canary import Canary
from gateway.stream.leg_end import Cause, LegEnd
from guards.evidence import Evidence

GONE, SILENT = LegEnd(Cause.UNREACHED), LegEnd(Cause.SILENT)
METRICS_S, WAIT_S = 0.7, 2.5


def answered(status: int = 200, body: bytes = b"{}") -> LegEnd:
    return LegEnd(Cause.DONE, "", status, body)


def counters(prompt: float | str, generation: float | str) -> LegEnd:
    """A /metrics page as vLLM 0.32 writes it."""
    labels = '{engine="0",model_name="m"}'
    lines = [
        "# HELP vllm:prompt_tokens_total Number of prefill tokens processed.",
        "# TYPE vllm:prompt_tokens_total counter",
        f"vllm:prompt_tokens_total{labels} {prompt}",
        f"vllm:generation_tokens_total{labels} {generation}",
        f"vllm:generation_tokens_created{labels} 1.79e+09",
        f"vllm:request_generation_tokens_sum{labels} 77.0",
        f'vllm:prompt_tokens_by_source_total{{engine="0",source="local_compute"}} {prompt}',
        f"vllm:num_requests_running{labels} 3.0",
    ]
    return answered(body="\n".join(lines).encode())


class Server:
    """Answers /metrics and completions as told, and notes what it was asked."""

    def __init__(self, completion: LegEnd, *pages: LegEnd) -> None:
        self._completion, self._pages = completion, list(pages)
        self.asked: list[tuple[str, bytes | None, float]] = []

    async def ask(self, name: str, path: str, body: bytes | None, timeout_s: float) -> LegEnd:
        assert name == "a"
        self.asked.append((path, body, timeout_s))
        return self._completion if path == "/v1/completions" else self._pages.pop(0)

    async def look(self, model: str | None = "m") -> Evidence:
        return await Canary(self.ask, METRICS_S).look("a", model, WAIT_S)


async def test_it_asks_for_one_token_of_the_smallest_prompt():
    """What it costs is one token of prompt and one of answer, and it waits exactly as long as it was told."""
    server = Server(answered())

    assert await Canary(server.ask, METRICS_S).sing("a", "m", WAIT_S) is True

    ((path, body, timeout_s),) = server.asked
    assert (path, timeout_s) == ("/v1/completions", WAIT_S)
    assert json.loads(body or b"") == {"model": "m", "prompt": [1], "max_tokens": 1, "temperature": 0}


@pytest.mark.parametrize(
    ("end", "told"),
    [(answered(), True), (SILENT, False), (GONE, None), (answered(400), None), (answered(404), None),
     (answered(500), None), (LegEnd(Cause.BROKEN), None)],
)  # fmt: skip
async def test_only_silence_is_silence(end, told):
    """A server that is gone, or refuses (an embedding model has no tokens), is no server that hangs."""
    assert await Canary(Server(end).ask, METRICS_S).sing("a", "m", WAIT_S) is told


async def test_nobody_is_asked_for_a_model_that_is_not_known():
    """Before a server told its models there is nothing to ask it for."""
    server = Server(answered(), counters(1, 1), counters(1, 1))

    assert await server.look(model=None) == Evidence(canary=None, computed=False)
    assert [path for path, _, _ in server.asked] == ["/metrics", "/metrics"]


async def test_a_canary_that_is_answered_settles_it():
    """Who computes a token does not hang; nothing more is asked."""
    server = Server(answered(), counters(1, 1))

    assert await server.look() == Evidence(canary=True)
    assert [path for path, _, _ in server.asked] == ["/metrics", "/v1/completions"]
    assert server.asked[0][2] == METRICS_S


@pytest.mark.parametrize(
    ("before", "after", "computed"),
    [
        (counters(10.0, 5.0), counters(10.0, 5.0), False),
        (counters(10.0, 5.0), counters(10.0, 6.0), True),
        (counters(10.0, 5.0), counters(11.0, 5.0), True),  # a long prompt, chunk by chunk
        (counters("1.5e+06", "2.0e+06"), counters("1.5e+06", "2.000001e+06"), True),
        (counters(0.0, 0.0), counters(0.0, 0.0), None),  # perhaps switched off
        (answered(body=b""), answered(body=b""), None),
        (answered(404), answered(404), None),
    ],
)
async def test_counters_show_whether_anything_was_computed(before, after, computed):
    """Prompts and answers both count; counters that are missing, or at nothing, tell nothing."""
    seen = await Server(SILENT, before, after).look()

    assert seen == Evidence(canary=False, metrics=True, computed=computed)


async def test_counters_that_were_not_told_before_leave_it_open():
    """A server that was too busy to tell, and then did, may have computed all the while: seen on starved machines."""
    seen = await Server(SILENT, SILENT, counters(10.0, 5.0)).look()

    assert seen == Evidence(canary=False, metrics=True, whole=False)


async def test_metrics_that_do_not_answer_are_a_signal_of_their_own():
    """Judged by the second look, after the canary: by then the server had time."""
    seen = await Server(SILENT, counters(10.0, 5.0), SILENT).look()

    assert (seen.metrics, seen.computed) == (False, None)
    assert seen.hung
