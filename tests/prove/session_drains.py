"""Real vLLM servers that are emptied by plan while they answer long conversations."""

import asyncio
import json
import subprocess
from typing import Any

import aiohttp

from gateway.local.engine import Engine, tiny_model
from tests.e2e.cuts import AT_ONCE
from tests.processes import HOLDFAST, ROOT, Gateway, until
from tests.prove import moves
from tests.prove.moves import Asked
from tests.prove.state import keep, provenance, quantile, results, say
from tests.shared_pages import PROMPT_TOKENS, brought, kinds_of, metrics, paged_fleet

NAME = "session-drains"
MOVES = 48
ANSWER_TOKENS = 400  # seconds of work for eight streams at once
BEGUN_TOKENS = 10  # each of them has so many when its server is drained
BEGUN_S_MAX, WITHIN_S = 120.0, 60.0
AT_ONCE_MOVED = 1  # each that is on its way slows those beside it
PAUSE_P99_S = 0.15  # goal


def run(count: int = MOVES) -> None:
    """Drain a server under eight streams, and let it serve again; until so many were moved."""
    if NAME in results():
        return
    model = tiny_model()
    rounds: list[dict[str, Any]] = []
    with moves.folder_of(NAME) as folder, paged_fleet(2, model, folder / "fleet") as fleet:
        kinds = kinds_of(fleet)
        all_of_them = moves.asked(kinds, fleet[1], model, 2, ANSWER_TOKENS)
        with moves.front(folder / "gateway", [engine.url for engine in fleet], model) as gateway:
            for number in range(2 * count // AT_ONCE + 1):
                if sum(one["told"]["moved"] for one in rounds) >= count:
                    break
                some = moves.some_of(all_of_them, number)
                rounds.append(asyncio.run(_one_drain(number, fleet, gateway, some)))
                pauses = [row["gap_s"] for row in rounds[-1]["streams"] if row["moved"]]
                most = moves.milliseconds(pauses, 1.0)
                say(f"{NAME}: drain {number + 1}: {len(pauses)} moved, pauses up to {most}")
            faults = gateway.faults()
    keep(NAME, {"on": provenance(), "kinds": [kind.name for kind in kinds], "rounds": rounds, "faults": faults})


async def _one_drain(number: int, fleet: list[Engine], gateway: Gateway, some: list[Asked]) -> dict[str, Any]:
    """Streams at the first server; it is drained by the command; then it is to serve again."""
    key = gateway.key(f"drain-{number}")  # another user, and so another salt: nothing is cached of rounds before
    before = metrics(fleet[1])
    name = fleet[0].address
    async with aiohttp.ClientSession() as session:
        started = moves.streams(session, gateway.url, key, some)
        got = list(started.values())
        begun = asyncio.to_thread(until, lambda: all(one.tokens > BEGUN_TOKENS for one in got), BEGUN_S_MAX)
        await begun
        given = (f"--at-once={AT_ONCE_MOVED}", f"--within={WITHIN_S}", "--json")
        told = json.loads(await _command(gateway, "drain", name, *given))
        still = sum(not task.done() for task in started)
        await asyncio.gather(*started)
    paid = await asyncio.to_thread(gateway.paid, key)
    seen = await asyncio.to_thread(moves.facts, gateway, got)
    await _command(gateway, "replicas", f"--undrain={name}")
    rows = [moves.move(kind, want, one, seen[one.request_id], 0.0)
            for (kind, _, want), one in zip(some, got, strict=True)]  # fmt: skip
    for row in rows:
        row.pop("at_s", None)
    return {
        "streams": rows,
        "told": told,
        "ran_on": still,
        "charged_exactly": paid.spent == sum(map(moves.cost, got)),
        "brought_tokens": brought(before, metrics(fleet[1])),
    }


async def _command(gateway: Gateway, *arguments: str) -> bytes:
    """What `holdfast ARGUMENTS` prints; it may end with an error, which is told then."""
    command = [str(HOLDFAST), *arguments, "--admin", gateway.admin_url]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    printed, _ = await asyncio.wait_for(process.communicate(), WITHIN_S + BEGUN_S_MAX)
    return printed


def verdicts(done: dict[str, Any]) -> dict[str, bool]:
    """Which claims hold, by what was measured."""
    if NAME not in done:
        return {}
    rounds = done[NAME]["rounds"]
    rows = [row for one in rounds for row in one["streams"]]
    pauses = [row["gap_s"] for row in rows if row["moved"]]
    p99 = quantile(pauses, 0.99) if pauses else float("inf")
    return {
        f"{MOVES} streams with such prompts moved by `holdfast drain`, {AT_ONCE} at once: {len(pauses)}":
            len(pauses) >= MOVES,
        "every drained server was empty, and said so": all(one["told"].get("empty") for one in rounds),
        "every stream over a drain equals its uninterrupted run": all(row["equal"] for row in rows),
        "every stream over a drain is charged once": all(one["charged_exactly"] for one in rounds)
            and not done[NAME]["faults"],
        f"a planned move pauses its client for {p99 * 1e3:.0f} ms (p99); goal: below {PAUSE_P99_S * 1e3:.0f} ms":
            p99 < PAUSE_P99_S,
    }  # fmt: skip


def lines(done: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    if NAME not in done:
        return []
    told = done[NAME]
    rows = [row for one in told["rounds"] for row in one["streams"]]
    moved = [row for row in rows if row["moved"]]
    gaps, engine = ([row[name] for row in moved] for name in ("gap_s", "engine_s"))
    took = max((one["told"].get("took_s", 0.0) for one in told["rounds"]), default=0.0)
    return [
        f"## `holdfast drain` under {AT_ONCE} streams with prompts of {PROMPT_TOKENS:,} tokens",
        "",
        f"{told['on']}. The server that answers is drained by the command, `--at-once {AT_ONCE_MOVED}`, then it "
        "serves again. Pause: between the tokens before and after the move, at the client. Kinds: "
        f"{', '.join(told['kinds'])}.",
        "",
        "| drains | streams | moved | equal | pause p50 | p99 | largest | asked to first token p50 | p99 | longest |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| {len(told['rounds'])} | {len(rows)} | {len(moved)} | {sum(row['equal'] for row in rows)} | "
        + " | ".join(moves.milliseconds(gaps, share) for share in (0.5, 0.99, 1.0))
        + " | "
        + " | ".join(moves.milliseconds(engine, share) for share in (0.5, 0.99))
        + f" | {took:.1f} s |",
        "",
    ]
