"""Alerts on their way to a receiver: signed, in order, tried again, and never to an address that is not for it."""

import asyncio
import ipaddress
import socket
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import aiohttp
import stamina
import structlog
from aiohttp.abc import AbstractResolver
from standardwebhooks import Webhook as Signer

log = structlog.get_logger()

QUEUE_MAX = 1000  # alerts that wait; the oldest is dropped for a new one
TRIES_MAX = 10
TRY_S_MAX = 5.0  # from the look-up of the name to the status
WAIT_S_FIRST, WAIT_S_MAX, JITTER_S = 0.5, 60.0, 1.0  # doubled after each try: three minutes and a half in all
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an address of IPv4 is in its last 32 bits


class Alert(Protocol):
    """What is sent. alert_id: the same however often it is."""

    @property
    def alert_id(self) -> str: ...
    @property
    def body(self) -> bytes: ...


class Pace(NamedTuple):
    """How often it is tried, and how long is waited between two tries. In seconds."""

    tries_max: int = TRIES_MAX
    wait_s_first: float = WAIT_S_FIRST
    wait_s_max: float = WAIT_S_MAX
    jitter_s: float = JITTER_S


class Undelivered(Exception):
    """The receiver did not take it; the text is for logs, and names no address."""


class Webhook:
    """Sends alerts to one address, as standardwebhooks.com has it. What the receiver answers is not read.

    allow_private: it may be within the house; else every address that its name stands for is looked at as it is
        connected to, so that no name can change its mind in between.
    done: told of each alert that was delivered, or given up, by its id; outcome: of each as a metric has it.
    resolver: of names; the system's by default.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        allow_private: bool,
        done: Callable[[str], None],
        outcome: Callable[[str], None],
        pace: Pace | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._url, self._signer, self._done, self._outcome = url, Signer(secret), done, outcome
        self._pace, self._resolver = pace or Pace(), resolver
        self._socket = _any_socket if allow_private else _public_socket
        self._waiting: deque[Alert] = deque()
        self._news = asyncio.Event()

    def send(self, alert: Alert) -> None:
        """Have an alert sent; never waits."""
        if len(self._waiting) >= QUEUE_MAX:
            dropped = self._waiting.popleft()
            self._outcome("dropped")
            log.warning("webhook.dropped", alert_id=dropped.alert_id, waiting=QUEUE_MAX)
        self._waiting.append(alert)
        self._news.set()

    async def run(self) -> None:
        """Send what comes, one after the other."""
        connector = aiohttp.TCPConnector(limit=1, resolver=self._resolver, socket_factory=self._socket)
        timeout = aiohttp.ClientTimeout(total=TRY_S_MAX)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            while True:
                await self._news.wait()
                while self._waiting:
                    await self._deliver(session, self._waiting.popleft())
                self._news.clear()

    async def _deliver(self, session: aiohttp.ClientSession, alert: Alert) -> None:
        """Send one alert, again and again for a while; then it is given up."""
        tries_max, first_s, most_s, jitter_s = self._pace
        waits = {"wait_initial": first_s, "wait_max": most_s, "wait_jitter": jitter_s}
        try:
            async for attempt in stamina.retry_context(on=Undelivered, attempts=tries_max, timeout=None, **waits):
                with attempt:
                    await self._try(session, alert)
        except Exception as error:  # also a bug: the next alert has its turn
            why = str(error) if isinstance(error, Undelivered) else repr(error)
            log.error("webhook.failed", alert_id=alert.alert_id, tries=tries_max, why=why)
            self._outcome("failed")
        else:
            self._outcome("delivered")
        self._done(alert.alert_id)

    async def _try(self, session: aiohttp.ClientSession, alert: Alert) -> None:
        """Send it once. Raises Undelivered."""
        at = datetime.now(UTC)
        headers = {
            "content-type": "application/json",
            "webhook-id": alert.alert_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": self._signer.sign(alert.alert_id, at, alert.body.decode()),
        }
        asked = session.post(self._url, data=alert.body, headers=headers, allow_redirects=False)
        try:
            async with asked as answer:
                status = answer.status
                answer.close()  # whatever else it says is not for us
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Undelivered(_worded(error)) from None
        if not 200 <= status < 300:
            raise Undelivered(f"the receiver answered {status}")


def public(address: str) -> bool:
    """Whether an address is anybody's, so that what is sent there stays out of the house.

    What only stands for an address of IPv4 is taken for that.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        within = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if found in NAT64:
            within = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if within is not None:
            return public(str(within))
    return found.is_global and not found.is_multicast and not found.is_reserved


def _any_socket(info: Any) -> socket.socket:
    family, kind, protocol, *_ = info
    return socket.socket(family, kind, protocol)


def _public_socket(info: Any) -> socket.socket:
    """A socket for just this address. Raises OSError where it is in the house."""
    if not public(info[4][0]):
        raise PermissionError("the webhook's address is private")
    return _any_socket(info)


def _worded(error: BaseException) -> str:
    """Say what went wrong, without the address: it may hold a token."""
    if isinstance(error, TimeoutError):
        return f"no answer within {TRY_S_MAX:g} s"
    said = str(getattr(error, "os_error", ""))
    return "its address is private, and not allowed" if "address is private" in said else type(error).__name__
