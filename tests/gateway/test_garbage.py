"""What a request leaves behind: nothing that waits for the collector of cycles."""

import asyncio
import gc
from collections.abc import Iterator

import pytest

from gateway.app import gateway
from gateway.config import Config
from gateway.local.ports import free_ports
from loadtests.bench.load import Job, run
from loadtests.bench.upstream import Upstream
from loadtests.bench.words import MODEL

KEPT_MAX = 3  # of a kind: what one connection's last request has yet to let go of


@pytest.fixture
def collector() -> Iterator[None]:
    """The collector as it was before."""
    before = gc.get_threshold()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.unfreeze()
    gc.set_threshold(*before)
    gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
async def test_requests_are_freed_when_they_end(tmp_path, collector, stream):
    """After some dozens of requests no object of ours is in a cycle: memory is free at once, sweeps can be rare."""
    loop, (port, admin_port) = asyncio.get_running_loop(), free_ports(2)
    upstream = await loop.create_server(Upstream, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}"
    listen = {"port": port, "admin_port": admin_port}
    models = [{"name": MODEL, "replicas": [{"url": url}]}]
    config = Config.model_validate({"listen": listen, "data": tmp_path, "models": models})
    async with gateway(config, asyncio.Event()):
        job = Job(port, stream=stream, connections=30, every_s=0.1, open_s=0.3, window_s=0.3)
        await run(job)
        gc.collect()
        gc.disable()

        seen = await run(job)
        await asyncio.sleep(0.2)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("gateway.")]

    upstream.close()
    assert (seen.failed, seen.answers >= 30) == (0, True)
    assert {kind: left.count(kind) for kind in left if left.count(kind) > KEPT_MAX} == {}
