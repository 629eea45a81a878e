"""`holdfast ledger`: what it prints and what it refuses, on a file of this machine and on a real Redis."""

import asyncio
import json
from pathlib import Path

import pytest

from gateway.books.ledger.contract import Place
from gateway.books.ledger.gone import PRESENT, UNSAID_S
from gateway.books.vault.contract import Heard, Vault
from gateway.books.vault.engines import open_vault
from gateway.books.vault.redis import RedisVault
from gateway.books.vault.sqlite import SqliteVault
from gateway.config_file import load
from gateway.local.ports import free_ports
from tests.gateway.test_cli import VALID, run
from tests.redis_servers import RedisServer
from tests.vaults import TAG, Teller, claim

DOLLARS = Place("user:acme/alice", "micro-dollars", "2026-11")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with RedisServer(tmp_path_factory.mktemp("redis"), "--requirepass", "sesame") as server:
        yield server


@pytest.fixture(params=["file", "redis"])
def config(request: pytest.FixtureRequest, tmp_path: Path, server: RedisServer) -> str:
    text = VALID
    if request.param == "redis":
        with server.client(password="sesame") as client:
            client.flushall()
        text += f'ledger: {{url: "redis://:sesame@127.0.0.1:{server.port}"}}\n'
    (tmp_path / "holdfast.yaml").write_text(text)
    return str(tmp_path / "holdfast.yaml")


def lease(config: str, *gateways: str, tag: str = TAG) -> None:
    """What gateways do."""

    async def say() -> None:
        vault = open_vault(load(config))
        for name in gateways:
            await Teller(vault, name).says(
                claim(rights=400, spent=100), claim(5_000_000, 2_500_000, 1_000_000, place=DOLLARS), tag=tag
            )
        await vault.close()

    asyncio.run(say())


def test_a_ledger_begins_is_shown_and_forgets_a_gateway(config: str):
    """As an operator does it, from the empty ledger on."""
    assert "begins" in run("ledger", "begin", "--config", config)[1]
    assert "in use" in run("ledger", "begin", "--config", config, code=1)[1]
    assert "nothing was leased" in run("ledger", "show", "--config", config)[1]
    lease(config, "west", "east")

    table, _ = run("ledger", "show", "--config", config)
    (told,) = json.loads(run("ledger", "show", "--config", config, "--json")[0])

    for part in ("org:acme", "1,000 tokens", "200 tokens", "$5.00", "$2.00", "$3.00", "west: heard of 0"):
        assert part in table
    assert told["accounts"][0] == {
        "scope": "org:acme", "unit": "tokens", "window": "2026-11", "limit": 1_000, "spent": 200, "leased": 600,
        "lost": 0,
    }  # fmt: skip
    assert [one["name"] for one in told["gateways"]] == ["east", "west"]

    assert "stop it first" in run("ledger", "write-off", "west", "--config", config, code=1)[1]
    assert "in 2 accounts" in run("ledger", "write-off", "west", "--force", "--config", config)[1]
    assert "in 0 accounts" in run("ledger", "write-off", "west", "--config", config)[1]
    assert "no such gateway: north" in run("ledger", "write-off", "north", "--config", config, code=1)[1]
    table, _ = run("ledger", "show", "--tag", "org:acme", "--config", config)
    assert "500 tokens" in table
    assert "west: written off" in table
    assert json.loads(run("ledger", "show", "--tag", "org:other", "--config", config, "--json")[0]) == []
    assert "begins" in run("ledger", "begin", "--again", "--config", config)[1]


def test_who_said_lately_that_it_is_there_is_not_written_off_by_mistake(config: str, monkeypatch: pytest.MonkeyPatch):
    """It may be silent under the orgs themselves for long; after three minutes it may be gone."""
    run("ledger", "begin", "--config", config)
    lease(config, "west")
    ago_s = {PRESENT: UNSAID_S, "": 9 * UNSAID_S}

    async def silent(vault: Vault, tag: str) -> list[Heard]:
        engine = SqliteVault if isinstance(vault, SqliteVault) else RedisVault
        found = await real[engine](vault, tag)
        return [one._replace(ago_s=ago_s[tag if tag == PRESENT else ""]) for one in found]

    real = {engine: engine.heard for engine in (SqliteVault, RedisVault)}
    for engine in real:
        monkeypatch.setattr(engine, "heard", silent)
    lease(config, "west", tag=PRESENT)
    lives = run("ledger", "write-off", "west", "--config", config, code=1)[1]
    ago_s[PRESENT] += 1.0

    assert "stop it first" in lives
    assert "in 4 accounts" in run("ledger", "write-off", "west", "--config", config)[1]


def test_looking_makes_no_ledger(tmp_path: Path):
    """Nor does writing off."""
    for command in (("show",), ("write-off", "west")):
        out, err = run("ledger", *command, "--data", str(tmp_path / "d"), code=1)
        assert (out, "no gateways share" in err) == ("", True)
    assert not (tmp_path / "d").exists()


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path):
    """With its address, and without its password."""
    port = free_ports(1)[0]
    (tmp_path / "c.yaml").write_text(VALID + f'ledger: {{url: "redis://:sesame@127.0.0.1:{port}"}}\n')

    for command in ("begin", "show"):
        out, err = run("ledger", command, "--config", str(tmp_path / "c.yaml"), code=1)
        assert (out, err.count("\n")) == ("", 1)
        assert str(port) in err
        assert "sesame" not in err
