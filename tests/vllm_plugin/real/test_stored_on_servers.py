"""Real vLLM with its pages on two Redis servers: what is damaged or lost there is made up for, and never read."""

import time

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts
from tests.vllm_plugin.store.redis_servers import Redis, address_of, made_key

TOKENS, BLOCK, PAGES = 24, 32, 210 // 32
STORED_S_MAX = 5.0
NAMES = "holdfast:pages:p:*"


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("redis")
    with Redis(folder / "a") as one, Redis(folder / "b") as other:
        yield [one, other]


@pytest.fixture(scope="module")
def engine(tmp_path_factory, servers):
    folder = tmp_path_factory.mktemp("engine")
    store = address_of(servers, made_key(folder / "pages.key"), copies=2, size="256MiB")
    engine = Engine(folder, {"scrub": "all", "store": store})
    yield engine
    engine.stop()


def test_pages_come_from_servers_for_as_long_as_one_has_them(engine, servers):
    """Every answer is the first one: from both servers, with one copy of each page bad, from one server, from one that
    is silent, from none.
    """
    ((prompt,),) = prompts(31, families=1, each=1, shared=150, own=60)
    right = engine.ask(prompt, TOKENS)
    deadline_s = time.monotonic() + STORED_S_MAX
    while any(len(server.ask("KEYS", NAMES)) < PAGES for server in servers):
        assert time.monotonic() < deadline_s, "pages are not stored"
        time.sleep(0.05)

    def again() -> int:
        """How many pages were loaded for it."""
        engine.forget()
        before = engine.metric("holdfast_pages_loaded")
        assert engine.ask(prompt, TOKENS) == right
        return engine.metric("holdfast_pages_loaded") - before

    assert again() == PAGES
    for name in servers[0].ask("KEYS", NAMES):
        page = servers[0].ask("HGET", name, 0)
        servers[0].ask("HSET", name, 0, bytes([page[0] ^ 64]) + page[1:])
    assert again() == PAGES
    servers[0].kill()
    assert again() == PAGES
    with servers[1].stopped():
        assert again() == 0
    servers[1].kill()
    assert again() == 0
    assert engine.metric("holdfast_pages_corrupt") == 0
