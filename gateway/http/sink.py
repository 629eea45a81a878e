"""A client's side of a stream: bytes to its transport, no await per chunk."""

from collections.abc import Callable

from aiohttp import web

from gateway.http.connection import ClientConnection, Written
from gateway.stream.wording import Wording
from guards.refusal import Reason

STREAM = "content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
PING = b": ping\n"  # a comment, which clients skip
RETRIES_HEADER = "x-holdfast-retries"  # how often it went to another server before the first byte
PLAIN = "content-type: application/json\r\n"


class ClientSink:
    """Writes an answer, most of all an event stream. The head goes with the first bytes: a refusal keeps its status.

    received_at: when the request arrived, by the loop's clock, in seconds.
    buffer_bytes_max: unread bytes at which the leg is paused. told: more headers, to be set before it starts.
    quiet: whether nothing was written since somebody set it; see `Pings`.
    """

    __slots__ = (
        "_buffer_bytes_max", "_chunked", "_connection", "_keep_alive", "_turn", "overhead_s", "quiet",
        "received_at", "replica", "request_id", "retries", "started", "told",
    )  # fmt: skip

    def __init__(self, request: web.BaseRequest, request_id: str, received_at: float, buffer_bytes_max: int) -> None:
        assert isinstance(request.protocol, ClientConnection)
        self._connection, self._turn = request.protocol, request.protocol.turn
        self._chunked = request.version >= (1, 1)
        self._keep_alive = request.keep_alive and self._chunked
        self._buffer_bytes_max = buffer_bytes_max
        self.started = self.quiet = False
        self.told: tuple[tuple[str, str], ...] = ()
        self.received_at = received_at
        self.request_id = request_id
        self.replica = ""
        self.overhead_s = 0.0
        self.retries = 0

    @property
    def gone(self) -> bool:
        """Whether the client hung up."""
        return self._connection.transport is None

    def from_replica(self, name: str, overhead_s: float) -> None:
        """Note which replica answers; the head names the first one that delivered."""
        if self.replica and not self.started:
            self.retries += 1
        self.replica, self.overhead_s = name, overhead_s

    def write(self, data: bytes) -> bool:
        """Send bytes at the end of this turn; False when the client had yet to read much of what came before."""
        transport = self._connection.transport
        if transport is None or transport.is_closing():
            return True  # the handler is being cancelled
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        if not self.started:
            self.started = True
            transport.set_write_buffer_limits(high=self._buffer_bytes_max)
            framed = self._head(STREAM, "transfer-encoding: chunked\r\n" if self._chunked else "") + framed
        self.quiet = False
        self._turn.write(transport, framed)
        return not self._connection.full

    def ping(self) -> None:
        """Show a waiting client that its answer is still to come. From then on its status is 200, whatever happens."""
        if not self._connection.full:
            self.write(PING)

    def on_room(self, then: Callable[[], None]) -> None:
        """Call `then` once when the client has caught up; its connection ends where it stops reading altogether."""
        if self._connection.transport is not None:
            self._connection.on_room = then

    def broken(self, detail: str) -> None:
        """End a stream that failed here: an error event, and no clean end of the connection's framing."""
        transport = self._connection.transport
        if transport is not None:
            self.write(Wording.error(detail, Reason.FAULT.value))
            self._keep_alive = self._chunked = False
            self._turn.end()
            self._connection.written()
            transport.close()

    def response(self) -> Written:
        """End the stream's framing; what the handler gives back once it is over."""
        if (transport := self._connection.transport) is not None:
            self._turn.write(transport, b"0\r\n\r\n" if self._chunked else b"", self._connection.written)
        return Written(self._keep_alive)

    def plain(self, body: bytes) -> Written:
        """Send a whole answer, head and body in one write; what the handler gives back."""
        if (transport := self._connection.transport) is not None:
            answer = self._head(PLAIN, f"content-length: {len(body)}\r\n") + body
            self._turn.write(transport, answer, self._connection.written)
        return Written(self._keep_alive)

    def _head(self, kind: str, framing: str) -> bytes:
        close = "" if self._keep_alive else "connection: close\r\n"
        whose = f"x-holdfast-replica: {self.replica}\r\n" if self.replica else ""  # who waits has none yet
        if self.retries:
            whose += f"{RETRIES_HEADER}: {self.retries}\r\n"
        told = "".join([f"{name}: {value}\r\n" for name, value in self.told]) if self.told else ""
        return (
            f"HTTP/1.1 200 OK\r\n{kind}x-request-id: {self.request_id}\r\n{whose}"
            f"x-holdfast-overhead-ms: {self.overhead_s * 1e3:.2f}\r\n{told}{framing}{close}\r\n"
        ).encode("latin-1")
