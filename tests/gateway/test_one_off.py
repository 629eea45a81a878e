"""A gateway whose directory is used once: what is its end, and what is only a start that failed."""

import asyncio
import socket

import pytest

from gateway.app import gateway
from gateway.books.ledger.register import Register
from gateway.books.vault.engines import open_vault
from gateway.config import Config
from gateway.local.ports import free_ports
from tests.redis_servers import RedisServer
from tests.vaults import TAG, Teller, claim


@pytest.mark.slow
@pytest.mark.parametrize("in_use", [True, False])
async def test_a_one_off_leaves_only_once_it_was_ready_to_serve(tmp_path, in_use):
    """After a crash its port may still be in use: that start fails, and the next one has its rights."""
    ports = free_ports(2)
    with RedisServer(tmp_path / "redis") as server, socket.create_server(("127.0.0.1", ports[0])) as other:
        config = Config.model_validate({
            "listen": {"port": ports[0], "admin_port": ports[1]}, "data": tmp_path / "data",
            "models": [{"name": "tiny", "replicas": [{"url": "http://127.0.0.1:1"}]}],
            "ledger": {"url": f"redis://127.0.0.1:{server.port}", "one_off": True},
        })  # fmt: skip
        vault = open_vault(config)
        await vault.begin()
        config.data.mkdir()
        before = Register(config.data)  # of a start that crashed
        await Teller(vault, before.name).says(claim(rights=100, spent=60))
        await before.know(TAG)
        await before.close()
        if not in_use:
            other.close()

        try:
            async with gateway(config, asyncio.Event()):
                served = True
        except OSError:
            served = False

        assert served is not in_use
        assert [one.fenced for one in await vault.heard(TAG)] == [served]
        await vault.close()
