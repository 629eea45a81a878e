"""Alerts reach their receiver, signed and once, and nothing else in the house."""

import asyncio
import socket
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from aiohttp.abc import AbstractResolver

from gateway.http.webhook import QUEUE_MAX, Pace, Webhook, public
from gateway.watch.alerts import Alert
from tests.receiver import Receiver

FAST = Pace(tries_max=4, wait_s_first=0.01, wait_s_max=0.02, jitter_s=0.0)


class Names(AbstractResolver):
    """Says what a test wants of every name."""

    def __init__(self, address, port):
        self.address, self.port, self.asked = address, port, []

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.asked.append(host)
        known = {"hostname": host, "host": self.address, "port": self.port}
        return [known | {"family": socket.AF_INET, "proto": 0, "flags": 0}]

    async def close(self):
        pass


class Sender:
    """A webhook, and what became of its alerts."""

    def __init__(self, url, secret, *, allow_private=True, resolver=None):
        self.outcomes, self.done, self.over = Counter(), [], asyncio.Queue()
        self.webhook = Webhook(
            url,
            secret,
            allow_private=allow_private,
            done=self._over,
            outcome=lambda outcome: self.outcomes.update([outcome]),
            pace=FAST,
            resolver=resolver,
        )

    def _over(self, name):
        self.done.append(name)
        self.over.put_nowait(name)

    async def deliver(self, *names):
        """Send, and wait until each has been delivered or given up."""
        for name in names:
            self.webhook.send(Alert(name, b'{"type":"test"}'))
        async with running(self.webhook), asyncio.timeout(5):
            for _ in names:
                await self.over.get()


@asynccontextmanager
async def running(webhook):
    task = asyncio.create_task(webhook.run())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_alerts_come_signed_and_in_order():
    """The receiver checks each signature itself."""
    async with Receiver() as receiver:
        sender = Sender(receiver.url, receiver.secret)
        await sender.deliver("a", "b", "c")

    assert (receiver.ids, receiver.heard) == (["a", "b", "c"], [{"type": "test"}] * 3)
    assert (sender.done, sender.outcomes) == (["a", "b", "c"], {"delivered": 3})


async def test_a_receiver_that_fails_is_tried_again_under_the_same_id():
    """So that it can tell a try from an alert."""
    async with Receiver(fails=2) as receiver:
        sender = Sender(receiver.url, receiver.secret)
        await sender.deliver("a", "b")

    assert (receiver.ids, receiver.taken) == (["a", "a", "a", "b"], ["a", "b"])
    assert sender.outcomes == {"delivered": 2}


async def test_an_alert_is_given_up_after_so_many_tries_and_the_next_one_has_its_turn():
    """A broken receiver costs a bounded time."""
    async with Receiver(fails=4) as receiver:
        sender = Sender(receiver.url, receiver.secret)
        await sender.deliver("a", "b")

    assert (receiver.ids, receiver.taken) == (["a"] * 4 + ["b"], ["b"])
    assert (sender.done, sender.outcomes) == (["a", "b"], {"failed": 1, "delivered": 1})


async def test_a_redirect_is_not_followed():
    """It would be an address that nobody set."""
    async with Receiver() as elsewhere, Receiver(fails=4, status=307, location=elsewhere.url) as receiver:
        elsewhere.secret = receiver.secret
        sender = Sender(receiver.url, receiver.secret)
        await sender.deliver("a")

    assert (elsewhere.ids, receiver.ids, sender.outcomes) == ([], ["a"] * 4, {"failed": 1})


async def test_nobody_listens():
    """That is an error like any other."""
    async with Receiver() as receiver:
        url, secret = receiver.url, receiver.secret
    sender = Sender(url, secret)
    await sender.deliver("a")

    assert sender.outcomes == {"failed": 1}


@pytest.mark.parametrize("host", ["127.0.0.1", "hooks.example.com"])
async def test_no_address_in_the_house_is_connected_to(host):
    """Not by number, nor by a name that stands for one: it is looked at when it is connected to."""
    async with Receiver() as receiver:
        names = Names("127.0.0.1", receiver.port)
        url = f"http://{host}:{receiver.port}/hook"
        refused = Sender(url, receiver.secret, allow_private=False, resolver=names)
        await refused.deliver("a")
        assert (receiver.ids, refused.outcomes) == ([], {"failed": 1})

        allowed = Sender(url, receiver.secret, allow_private=True, resolver=names)
        await allowed.deliver("a")

    assert receiver.ids == ["a"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1",
        "2002:7f00:1::", "64:ff9b::a00:1", "64:ff9b::7f00:1", "2001:db8::1",
    ],
)  # fmt: skip
def test_what_is_private(address):
    """Also what only stands for it."""
    assert not public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_what_is_not(address):
    """The rest of the world."""
    assert public(address)


async def test_alerts_that_wait_are_bounded():
    """The oldest goes; nobody waits."""
    async with Receiver() as receiver:
        sender = Sender(receiver.url, receiver.secret)
        for number in range(QUEUE_MAX + 3):
            sender.webhook.send(Alert(str(number), b"{}"))

        assert sender.outcomes == {"dropped": 3}
        assert [one.alert_id for one in sender.webhook._waiting][:1] == ["3"]
