"""What is behind a switch can be changed while clients are connected."""

import socket
import socketserver
import threading
import time
from contextlib import contextmanager

import pytest

from loadtests.switch import SwitchProcess


@contextmanager
def echoing(name):
    """A server that says its name and what it hears."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            while data := self.request.recv(100):
                self.request.sendall(name + data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.slow
def test_a_switch_passes_slows_silences_refuses_and_changes_what_is_behind_it():
    """Each from one moment to the next; open connections end, but for the silent ones."""
    with echoing(b"a") as one, echoing(b"b") as other, SwitchProcess(one) as switch:

        def connected():
            return socket.create_connection(("127.0.0.1", switch.port), 5)

        def asked(client, wait_s=5.0):
            client.settimeout(wait_s)
            client.sendall(b"x")
            return client.recv(100)

        client = connected()
        assert asked(client) == b"ax"

        switch.change("pass", to=other)
        assert client.recv(100) == b""
        client = connected()
        assert asked(client) == b"bx"

        switch.change("slow", delay_s=0.5)
        client = connected()
        began_s = time.monotonic()
        assert asked(client) == b"bx"
        assert time.monotonic() - began_s >= 0.5

        switch.change("silent")
        with pytest.raises(TimeoutError):
            asked(client, 0.3)

        switch.change("refuse")
        with pytest.raises(ConnectionRefusedError):
            connected()

        switch.change("pass", to=one)
        assert asked(connected()) == b"ax"
