"""Several legs of one stream, as the flow waits for them."""

import asyncio
from typing import Any

from gateway.flow import Flow
from gateway.stream.leg_end import Cause, LegEnd
from tests.gateway.stream.fakes import BROKEN, Engine, Play, call_for, ids_of, text_of


class Leg:
    """A leg that ends when it is told to, or closed."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[LegEnd] = asyncio.get_running_loop().create_future()

    def end(self, end: LegEnd) -> None:
        if not self.ended.done():
            self.ended.set_result(end)

    def close(self) -> None:
        self.end(LegEnd(Cause.CLOSED))

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def progress(self) -> None: ...


class Record:
    """Notes how legs ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[Cause, bool]] = []

    def leg_ended(self, name: str, end: LegEnd, lost: bool) -> None:
        self.ends.append((end.cause, lost))


async def test_a_choice_whose_leg_is_lost_does_not_wait_for_its_siblings():
    """After a failover each choice has a leg; when one is lost, the others at that server are closed, and all go on."""
    answers = [ids_of("first ü 🦀, and on"), ids_of("second, somewhat longer ö")]
    nothing: Any = None
    flow, record = Flow(nothing, nothing, nothing, nothing, nothing, 60.0, nothing), Record()
    play = Play(call_for(n=2, return_token_ids=True), Engine(answers), cuts=[8])
    (ask,) = await play.relay.asks()
    part, leg, raws, end = play._leg(ask)
    assert await play.relay.ended(part, await play._feed(part, leg, raws, end))
    legs: dict[Any, Any] = {}
    for ask in await play.relay.asks():
        part, _, raws, _ = play._leg(ask)
        part.leg = leg = Leg()
        part.events(raws[:3])
        legs[leg.ended] = leg, part
    first, second = (leg for leg, _ in legs.values())

    first.end(BROKEN)
    async with asyncio.timeout(1):
        lost = await flow._ends("one", play.relay, legs, record)

    assert lost
    assert second.ended.result().cause is Cause.CLOSED
    assert record.ends == [(Cause.BROKEN, True), (Cause.CLOSED, True)]
    await play.run()
    assert play.seen.text == {0: text_of(answers[0]), 1: text_of(answers[1])}
    assert play.seen.ids == dict(enumerate(answers))
