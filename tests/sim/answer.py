"""One answer that a simulated server gives, piece by piece, until it is told to break it."""

from typing import TYPE_CHECKING

from loadtests import stub_wire as wire
from tests.sim.network import Link
from tests.sim.plan import Fault

if TYPE_CHECKING:
    from tests.sim.server import Server

ABORT = b'data: {"id":"x","choices":[{"index":0,"text":"","delta":{"content":""},"finish_reason":"abort"}]}\n\n'
STRAY = b'data: {"id":"x","choices":[{"index":63,"text":"?","delta":{"content":"?"},"token_ids":[63]}]}\n\n'
GARBAGE = b'data: {"id":\xff\xfe\x00{{not json\n\n'
BARE = b'data: {"id":"x","choices":[{"index":0,"text":"?","delta":{"content":"?"}}]}\n\n'
COMMENT = b": keep-alive\n\n"
COMMENT_EVERY_S = 0.2
TOGETHER = 0.8


class Answer:
    """Says its pieces in time. tokens: how many each brings.

    hushed: this stream alone stands still.
    """

    def __init__(self, server: "Server", link: Link, pieces: list[bytes], tokens: list[int], streamed: bool) -> None:
        self._server, self._link, self._pieces, self._tokens, self._streamed = server, link, pieces, tokens, streamed
        self._next = 0
        self.over = self.hushed = self._parked = self._headed = False

    def begin(self) -> None:
        """The head is sent as soon as the request is accepted, or with the first event."""
        pace = self._server.pace
        if pace.head_early:
            self._begun()
        total = sum(self._tokens) * pace.interval_s / pace.per_chunk if not self._streamed else 0.0
        self._wait(pace.ttft_s + total)

    def go_on(self) -> None:
        """The engine runs again."""
        if self._parked:
            self._parked = False
            self._turn()

    def fail(self) -> None:
        """End with an error."""
        if self.over:
            return
        if self._streamed:
            self._begun()
            self._say(wire.framed(wire.INTERNAL_ERROR) + wire.framed(wire.DONE) + wire.STREAM_END)
        else:
            self._say(wire.answer(500, b"{}"))
        self._end()

    def strike(self, fault: Fault) -> None:
        """Break this answer."""
        kind = fault.kind
        if self.over:
            return
        if kind in ("cut", "fin"):
            self._link.hang_up(reset=kind == "cut")
        elif kind == "hush":
            self.hushed = True
            if fault.for_s is not None:
                self._server.loop.later(fault.for_s, self._unhush)
        elif not self._streamed:
            self._link.hang_up(reset=True)
        elif kind == "tear":
            self._begun()
            piece = self._pieces[self._next]
            self._say(piece[: self._server.rng.randrange(1, len(piece))])
            self._link.hang_up(reset=False)
        elif kind == "comments":
            self._begun()
            self.hushed = True
            self._comment()
        else:
            said = {"error": wire.INTERNAL_ERROR, "abort": ABORT, "stray": STRAY, "garbage": GARBAGE, "bare": BARE}
            self._begun()
            if kind in said:
                self._say(wire.framed(said[kind]))
            if kind in ("error", "abort", "early"):
                self._say(wire.STREAM_END)
                self._end()

    # ---------------------------------------------------------------- its turns

    def _wait(self, seconds: float) -> None:
        self._server.loop.later(seconds * (0.5 + self._server.rng.random()), self._turn)

    def _turn(self) -> None:
        if self.over:
            return None
        if self._server.idle or self.hushed:
            self._parked = True
            return None
        if self._struck():
            return None
        if self._server.rotten:
            return self.fail()
        self._begun()
        self._server.prompt_tokens += self._next == 0  # read by the engine just now
        out = [self._take()]
        while self._next < len(self._pieces) and not self._tokens[self._next] and self._server.rng.random() < TOGETHER:
            out.append(self._take())  # pieces without tokens mostly go with those before them
        self._say(b"".join(out))
        if self._next == len(self._pieces):
            self._end()
        else:
            self._wait(self._server.pace.interval_s if self._tokens[self._next] else 0.0)
        return None

    def _take(self) -> bytes:
        self._server.tokens += self._tokens[self._next]
        self._next += 1
        return self._pieces[self._next - 1]

    def _struck(self) -> bool:
        """Carry out an order that is due; tell whether this turn is over."""
        orders, tokens = self._server.orders, self._server.tokens
        if not orders or orders[0].after is None or tokens < orders[0].after:
            return False
        self._server.obey(orders.pop(0), self)
        if not (self.over or self.hushed or self._server.idle or not self._link.open):
            return False
        self._parked = not self.over
        return True

    def _begun(self) -> None:
        if self._streamed and not self._headed:
            self._headed = True
            self._say(wire.HEAD_STREAM)

    def _say(self, data: bytes) -> None:
        self._server.send(self._link, data)

    def _end(self) -> None:
        self.over = True
        self._server.done(self._link)

    def _unhush(self) -> None:
        self.hushed = False
        if not self._server.idle:
            self.go_on()

    def _comment(self) -> None:
        if not self.over and self._link.open:
            self._say(wire.framed(COMMENT))
            self._server.loop.later(COMMENT_EVERY_S, self._comment)
