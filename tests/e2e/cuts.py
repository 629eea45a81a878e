"""Many cuts over real vLLM: streams through the gateway, behind a cutting proxy, against uninterrupted ones."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from loadtests.cutting_proxy import Cut
from tests.answers import Answer, ask

AT_ONCE = 8
EXTRA_BYTES_MAX = 400  # beyond the event that completes the last token: inside the next one, or inside its framing


@dataclass
class Tally:
    """What came of a run of cuts."""

    streams: int = 0
    cut: int = 0  # after tokens were delivered
    equal: int = 0
    differing: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)  # the largest of each stream that was cut

    def add(self, name: str, want: Answer, got: Answer) -> None:
        """Compare one stream with its uninterrupted run."""
        assert want.done, f"{name}: the uninterrupted run was not"
        assert want.error is None, f"{name}: the uninterrupted run failed"
        self.streams += 1
        if got.said and got.said.get("failovers"):
            self.cut += 1
            self.gaps_s.append(max(got.gaps_s))
        if got.content == want.content:
            self.equal += 1
        else:
            self.differing.append(f"{name}: {_difference(want, got)}")


def seeded_plan(seed: int, tokens: int, share: float = 1.0) -> Callable[[int, bytes], Cut | None]:
    """Cut streams of `tokens` tokens somewhere, by reset or by a clean FIN; never so late that they are whole."""
    rng = random.Random(seed)

    def plan(number: int, request: bytes) -> Cut | None:
        del number, request
        cut = Cut(rng.randrange(1, tokens - 3), rng.randrange(EXTRA_BYTES_MAX), rng.choice(("rst", "fin")))
        return cut if rng.random() < share else None

    return plan


async def run_cuts(
    oracle_url: str,
    gateway_url: str,
    bodies: Sequence[dict[str, Any]],
    rounds: int,
    *,
    path: str = "/v1/chat/completions",
    key: str = "",
    at_once: int = AT_ONCE,
    enough: Callable[[], bool] = lambda: False,
) -> Tally:
    """Ask each body once without the gateway, then `rounds` times through it; compare everything.

    enough: when to begin no further stream, however many of the rounds are left.
    """
    tally = Tally()
    gate = asyncio.Semaphore(at_once)
    async with aiohttp.ClientSession() as session:

        async def undisturbed(body: dict[str, Any]) -> Answer:
            async with gate:
                return await ask(session, oracle_url, body, path=path)

        wanted = await asyncio.gather(*map(undisturbed, bodies))

        async def one(number: int) -> None:
            body, want = bodies[number % len(bodies)], wanted[number % len(bodies)]
            async with gate:
                if enough():
                    return
                got = await ask(session, gateway_url, body, path=path, key=key)
            tally.add(f"stream {number}", want, got)

        await asyncio.gather(*(one(number) for number in range(rounds * len(bodies))))
    return tally


def _difference(want: Answer, got: Answer) -> str:
    if got.error is not None:
        return f"error {got.error}"
    for index, (theirs, ours) in enumerate(zip(want.ids, got.ids, strict=False)):
        if theirs != ours:
            same = next((n for n, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), len(ours))
            return f"choice {index}: ids differ from token {same} of {len(theirs)}"
    if want.text != got.text:
        return f"text differs: {want.text!r} became {got.text!r}"
    return f"ends differ: {want.content[2:]} became {got.content[2:]}"
