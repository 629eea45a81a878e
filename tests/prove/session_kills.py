"""Real vLLM servers, killed in long conversations; the standby loads their pages, or computes them anew."""

import asyncio
import random
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp

from gateway.local.engine import Engine, tiny_model
from tests.e2e.cuts import AT_ONCE
from tests.processes import Gateway, until
from tests.prove import moves
from tests.prove.moves import Asked
from tests.prove.report import EVIDENCE
from tests.prove.state import SEED, keep, provenance, quantile, results, say
from tests.prove.timeline import Failover
from tests.prove.timeline import svg as timeline
from tests.shared_pages import PROMPT_TOKENS, STORE_BYTES, brought, kinds_of, metrics, paged_fleet, start

NAME = "session-kills"
POINTS = 50  # streams that are cut, with pages: each at a place of its own
PAGES, WITHOUT = "pages", "without"
ARMS: dict[str, int | None] = {PAGES: STORE_BYTES, WITHOUT: None}  # bytes of the store
ANSWER_TOKENS = 400  # seconds of work for eight streams at once
DYING = {"flap_soon_s": 0}  # `health`: the same server is killed each minute, and is to serve again all the same
DRAWN_TOKENS = 120  # the kill is when one of them has brought so many at most
BEGUN_S_MAX, UP_S_MAX = 120.0, 60.0
GAP_P99_S, RECOMPUTED = 1.0, 0.01  # goals
QUEUED, PREFILLED = "vllm:request_queue_time_seconds_sum", "vllm:request_prefill_time_seconds_sum"


@dataclass(frozen=True)
class Arm:
    """Two servers behind a gateway. The first one serves and is killed; the second takes over."""

    name: str
    serving: Engine
    standby: Engine
    gateway: Gateway


def run(count: int = POINTS) -> None:
    """Rounds, until so many streams were cut with pages; in each a kill with pages, in every other one without too."""
    rounds: list[dict[str, Any]] = results().get(NAME, {}).get("rounds", [])
    if cut(rounds, PAGES) >= count:
        return
    with _arms() as arms:
        kinds = kinds_of([arm.serving for arm in arms])
        all_of_them = moves.asked(kinds, arms[-1].standby, tiny_model(), 0, ANSWER_TOKENS)
        tries = count
        while cut(rounds, PAGES) < count and tries:
            tries -= 1
            number = 1 + max((one["round"] for one in rounds), default=0)
            turn = (arms, arms[:1], arms[::-1], arms[:1])[number % 4 - 1]
            for arm in turn:
                some = moves.some_of(all_of_them, number)
                rounds.append({"round": number, "arm": arm.name} | asyncio.run(_one_kill(arm, number, some)))
                _tell(rounds[-1])
            keep(NAME, {"on": provenance(), "kinds": [kind.name for kind in kinds], "rounds": rounds})
            if cut(rounds, PAGES) < count:
                start([arm.serving for arm in turn])
                for arm in turn:
                    until(partial(_both_up, arm.gateway), UP_S_MAX)


def cut(rounds: list[dict[str, Any]], arm: str) -> int:
    """How many streams were cut in mid-answer."""
    return sum(row["moved"] for one in rounds if one["arm"] == arm for row in one["streams"])


@contextmanager
def _arms() -> Iterator[list[Arm]]:
    """Both, with servers that are warm."""
    model = tiny_model()
    with ExitStack() as stack:
        folder = stack.enter_context(moves.folder_of(NAME))
        arms = []
        for name, store_bytes in ARMS.items():
            fleet = stack.enter_context(paged_fleet(2, model, folder / name, store_bytes=store_bytes))
            say(f"{NAME}: two servers, {name}, are ready")
            gateway = moves.front(folder / f"{name}-gateway", [engine.url for engine in fleet], model, health=DYING)
            arms.append(Arm(name, fleet[0], fleet[1], stack.enter_context(gateway)))
        yield arms


def _both_up(gateway: Gateway) -> bool:
    return gateway.metric("holdfast_replica_up") == 2


async def _one_kill(arm: Arm, number: int, some: list[Asked]) -> dict[str, Any]:
    """Stream, kill the server that answers when one of the streams has brought so many tokens, and compare."""
    rng = random.Random(f"{SEED} {number}")  # the same in both arms
    key = arm.gateway.key(f"round-{number}")  # another user, and so another salt: nothing is cached of rounds before
    before = metrics(arm.standby)
    async with aiohttp.ClientSession() as session:
        started = moves.streams(session, arm.gateway.url, key, some)
        got = list(started.values())
        drawn, tokens = rng.choice(got), rng.randrange(1, DRAWN_TOKENS)
        await asyncio.to_thread(until, lambda: all(one.tokens for one in got) and drawn.tokens >= tokens, BEGUN_S_MAX)
        killed_at = time.time()
        arm.serving.kill(signal.SIGKILL)
        await asyncio.gather(*started)
    paid = await asyncio.to_thread(arm.gateway.paid, key)
    seen = await asyncio.to_thread(moves.facts, arm.gateway, got)
    after = metrics(arm.standby)
    rows = [moves.move(kind, want, one, seen[one.request_id], killed_at)
            for (kind, _, want), one in zip(some, got, strict=True)]  # fmt: skip
    count = max(1, sum(row["moved"] for row in rows))
    return {
        "killed_at": killed_at,
        "streams": rows,
        "charged_exactly": paid.spent == sum(map(moves.cost, got)),
        "faults": arm.gateway.faults(),
        "brought_tokens": brought(before, after),
        # Of each stream that moved, by vLLM's own clock: until it was admitted, and from then to its first token.
        "loaded_s": (after[QUEUED] - before[QUEUED]) / count,
        "computed_s": (after[PREFILLED] - before[PREFILLED]) / count,
    }


# ---------------------------------------------------------------- what is told


def _tell(one: dict[str, Any]) -> None:
    rows = [row for row in one["streams"] if row["moved"]]
    pauses = [row["gap_s"] for row in rows] or [0.0]
    say(
        f"{NAME}: kill {one['round']}, {one['arm']}: {sum(row['equal'] for row in one['streams'])} of {AT_ONCE} equal, "
        f"{len(rows)} cut, pauses {min(pauses) * 1e3:.0f} to {max(pauses) * 1e3:.0f} ms, "
        f"loaded in {one['loaded_s'] * 1e3:.0f} ms, computed in {one['computed_s'] * 1e3:.0f} ms"
    )


def _typical(rounds: list[dict[str, Any]]) -> tuple[Failover, str]:
    """The stream whose pause is the median of those with pages, and what it is called."""
    rows = [(row, one) for one in rounds if one["arm"] == PAGES for row in one["streams"] if row["moved"]]
    row, one = sorted(rows, key=lambda pair: float(pair[0]["gap_s"]))[len(rows) // 2]
    seen = Failover(row["at_s"], row["lost_s"], row["asked_s"], row["first_s"], one["loaded_s"], one["computed_s"])
    title = f"kill -9 of vLLM at token {row['tokens']}; a prompt of {PROMPT_TOKENS:,} tokens, one of {AT_ONCE} at once"
    return seen, title


def moved(done: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    """The streams of an arm that went on elsewhere in mid-answer."""
    return [row for one in done[NAME]["rounds"] if one["arm"] == arm for row in one["streams"] if row["moved"]]


def computed_again(done: dict[str, Any], arm: str) -> tuple[float, float]:
    """See `moves.computed_again`; of one arm."""
    rounds = [one for one in done[NAME]["rounds"] if one["arm"] == arm]
    rows = [row for one in rounds for row in one["streams"]]
    return moves.computed_again(rows, sum(one["brought_tokens"] for one in rounds))


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    if NAME not in done:
        return {}
    rounds = done[NAME]["rounds"]
    rows = moved(done, PAGES)
    if not rows:
        return {f"{POINTS} streams cut by kill -9, their pages in the store": False}
    p99 = quantile([row["gap_s"] for row in rows], 0.99)
    _, beyond = computed_again(done, PAGES)
    return {
        f"{POINTS} streams with prompts of {PROMPT_TOKENS:,} tokens cut at seeded points by kill -9, their pages in "
        f"the store: {len(rows)}, and {len(moved(done, WITHOUT))} without": len(rows) >= POINTS,
        "every stream over a kill equals its uninterrupted run": all(
            row["equal"] for one in rounds for row in one["streams"]
        ),
        "every stream over a kill is charged once": all(one["charged_exactly"] for one in rounds),
        "nothing in these gateways' logs that should not be there": not any(one["faults"] for one in rounds),
        f"of prompts and answers {beyond:.2%} is computed again beyond the partial tails; goal: below "
        f"{RECOMPUTED:.0%}": beyond < RECOMPUTED,
        f"with pages the client's pause is {p99 * 1e3:.0f} ms (p99); goal: below {GAP_P99_S:g} s": p99 < GAP_P99_S,
    }


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words and as a picture."""
    if NAME not in done:
        return []
    told = done[NAME]
    found = [
        f"## kill -9 of the serving vLLM, under {AT_ONCE} streams with prompts of {PROMPT_TOKENS:,} tokens",
        "",
        f"{told['on']}. Two gateways, each in front of two servers: with one page store, and with the plugin but no "
        "store. A kill with pages in each round, and in every other one without, before or behind it; a killed server "
        "(its whole process group) is started anew for the next round. The kill is when one of the streams, drawn by "
        "seed, has brought so many tokens as are drawn by seed; so each is cut at a place of its own. Silent servers "
        f"are not raced here (`limits.hedges: 0`): each pause is that of a death. Kinds: {', '.join(told['kinds'])}.",
        "",
        "| | streams cut | equal | pause p50 | p99 | loss seen p50 | p99 | asked to first token p50 | p99 | loaded | "
        "computed | computed again | beyond the tails |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(done, arm) for arm in ARMS),
        "",
        "Pause: between the tokens before and after, at the client. Loaded, computed: by vLLM's own clock, from when "
        "it has the request until it is admitted, and from then to its first token; medians over kills of the mean "
        "over their streams. Computed again: of the tokens of prompts and answers that the standby was asked to go on "
        "from; a page that is not full, the tail, is always.",
        "",
        "One of them, whose pause is the median:",
        "",
        "![who did what, and when](sessions-timeline.svg)",
        "",
    ]
    if moved(done, PAGES):
        (EVIDENCE / "sessions-timeline.svg").write_text(timeline(*_typical(told["rounds"])))
    return found


def _line(done: dict[str, Any], arm: str) -> str:
    rows = moved(done, arm)
    if not rows:
        return f"| {arm} |" + " – |" * 12
    rounds = [one for one in done[NAME]["rounds"] if one["arm"] == arm]
    times = [moves.milliseconds([row[name] for row in rows], share)
             for name in ("gap_s", "lost_s", "engine_s") for share in (0.5, 0.99)]  # fmt: skip
    means = [f"{statistics.median(one[name] for one in rounds) * 1e3:.0f} ms" for name in ("loaded_s", "computed_s")]
    shares = [f"{share:.1%}" for share in computed_again(done, arm)]
    equal = sum(row["equal"] for row in rows)
    return f"| {arm} | {len(rows)} | {equal} | " + " | ".join([*times, *means, *shares]) + " |"
