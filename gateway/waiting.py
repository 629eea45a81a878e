"""Where requests wait for a server: admission's decisions, as futures and one timer.

    async with waiting.place(ask) as place:      raises Refused
        ...                                      runs at place.server
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from guards.admission import Admission
from guards.place import Ask, Place
from guards.refusal import Refused


class Waiting:
    """Has requests wait until admission lets them start. Everything that could let one start goes through here.

    There is a future for a request that waits, and none for one that does not; and one timer for all.

    fits: whether a server has room for a request, as admission says.
    clock: monotonic, seconds; that of deadlines.
    """

    def __init__(self, admission: Admission, clock: Callable[[], float]) -> None:
        self._admission, self._clock = admission, clock
        self.fits = admission.fits
        self._futures: dict[Place, asyncio.Future[None]] = {}  # admission bounds how many
        self._timer: asyncio.TimerHandle | None = None
        self._rings_s = 0.0

    def __len__(self) -> int:
        return len(self._futures)

    def again(self) -> None:
        """Look anew who may start: a server has come up."""
        self._turn()

    def foresee(self, ask: Ask) -> Refused | None:
        """Why a request would be refused that came now; None where it would not be."""
        return self._admission.foresee(ask, self._clock())

    def place(self, ask: Ask) -> "Stay":
        """A block around a request that may run; waits for its turn first. Raises Refused."""
        return Stay(self, ask)

    def count(self, place: Place, input_tokens: int | None, output_tokens: int) -> None:
        """So many tokens of a running request there were in all, so far. Lets nobody start.

        input_tokens: None while they are not known.
        """
        self._admission.count(place, input_tokens, output_tokens)

    def move(self, place: Place, server: str) -> None:
        """A request goes on at another server."""
        self._admission.move(place, server)
        self._turn()

    def lost(self, server: str) -> None:
        """A server is lost, or hangs: its permits come back."""
        self._admission.lost(server)
        self._turn()

    def look(self, server: str, running: int, waiting: int, preemptions: int) -> None:
        """A server told how it is."""
        self._admission.look(server, running, waiting, preemptions, self._clock())
        self._turn()

    async def begin(self, ask: Ask) -> Place:
        """Wait until a request may run; it has to `leave`. Raises Refused."""
        place = self.enter(ask)
        if place.server is None:
            await self.wait(place)
        return place

    def enter(self, ask: Ask) -> Place:
        """A request's place: it may run if that has a server, else it has to `wait`. Raises Refused."""
        return self._admission.enter(ask, self._clock())

    async def wait(self, place: Place) -> None:
        """Wait until it may run. Raises Refused; then, and where it is cancelled, it has left."""
        future = self._futures[place] = asyncio.get_running_loop().create_future()
        try:
            self._turn()
            await future
        except BaseException:  # refused; or cancelled, which may be when it was let start but has not heard of it
            self.leave(place, sent=False)
            raise
        finally:
            self._futures.pop(place, None)
            del future  # with a refusal in it, whose traceback has this frame

    def leave(self, place: Place, *, sent: bool = True, used: tuple[int | None, int] | None = None) -> None:
        """A request is over, whatever it was at. sent: whether it went to a server. used: as of `count`, at last."""
        self._admission.leave(place, self._clock(), sent=sent, used=used)
        if self._futures:  # as mostly nobody waits
            self._turn()

    def _turn(self) -> None:
        """Start and refuse whom admission says, and come again when it says so."""
        if not self._futures:
            return
        moves = self._admission.next(self._clock())
        for place in moves.started:
            if not (future := self._futures.pop(place)).done():
                future.set_result(None)
        for place, refused in moves.refused:
            if not (future := self._futures.pop(place)).done():
                future.set_exception(refused)
        if moves.again_s is not None and (self._timer is None or moves.again_s < self._rings_s):
            if self._timer is not None:
                self._timer.cancel()
            self._rings_s = moves.again_s
            self._timer = asyncio.get_running_loop().call_later(moves.again_s - self._clock(), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._turn()


class Stay:
    """A block around a request that runs. Leaving it lets the next one start, however it is left."""

    __slots__ = ("_ask", "_place", "_waiting")

    def __init__(self, waiting: Waiting, ask: Ask) -> None:
        self._waiting, self._ask = waiting, ask

    async def __aenter__(self) -> Place:
        self._place = await self._waiting.begin(self._ask)
        return self._place

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._waiting.leave(self._place)
