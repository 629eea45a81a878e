"""Real vLLM, its ExampleConnector before ours: it brings pages from files in the very step that reads them."""

import random

import pytest
from safetensors.torch import load_file, save_file

from tests.vllm_plugin.real.engine import Engine, prompts

TOKENS = 24
BLOCK = 32
PAGES = 210 // BLOCK


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def engine(tmp_path_factory, folder):
    files = {
        "kv_connector": "ExampleConnector", "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }  # fmt: skip
    engine = Engine(tmp_path_factory.mktemp("beside"), {}, beside=[files, {}])
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def asked(engine):
    """Prompts that have nothing in common, and their answers; each has its files."""
    flat = [prompt for (prompt,) in prompts(41, families=6, each=1, shared=0, own=210)]
    return [(prompt, engine.ask(prompt, TOKENS)) for prompt in flat]


def forget(engine) -> None:
    """What is here, not what is in files."""
    assert engine.scheduler.reset_prefix_cache()


def counted(engine) -> dict[str, float]:
    names = ("pages_brought", "pages_corrupt", "requests_recomputed", "requests_aborted", "chains_broken")
    return {name: engine.metric(f"holdfast_{name}") for name in names}


def test_pages_from_files_are_what_they_were(engine, asked):
    """All full ones of each prompt."""
    forget(engine)
    before = counted(engine)
    assert [engine.ask(prompt, TOKENS) for prompt, _ in asked] == [right for _, right in asked]
    assert counted(engine) == before | {"pages_brought": before["pages_brought"] + len(asked) * PAGES}


def test_a_page_damaged_in_its_file_is_found(engine, asked, folder):
    """One of each prompt: in the step that reads it. It is computed, and not brought again."""
    forget(engine)
    before = counted(engine)
    rng = random.Random(0)
    for part in sorted(folder.glob("*/*layers.1.*")):
        kept = load_file(part)
        kept["kv_cache"][rng.randrange(PAGES * BLOCK)] += 1
        save_file(kept, part)

    for _ in range(2):
        assert [engine.ask(prompt, TOKENS) for prompt, _ in asked] == [right for _, right in asked]
        assert engine.metric("holdfast_pages_corrupt", kind="changed", where="brought") == len(asked)
        now = counted(engine)
        assert now["requests_recomputed"] == before["requests_recomputed"] + len(asked)
        assert now["requests_aborted"] == now["chains_broken"] == 0
        forget(engine)


def test_pages_that_this_engine_never_sealed_are_not_believed(engine, asked, folder):
    """Those of an engine before it, say: nobody here knows what they were."""
    (prompt,) = prompts(42, families=1, each=1, shared=0, own=210)[0]
    right = engine.ask(prompt, TOKENS)
    worker_half()._known.clear()
    forget(engine)
    before = counted(engine)

    assert engine.ask(prompt, TOKENS) == right

    assert engine.metric("holdfast_pages_corrupt", kind="absent", where="brought") == PAGES
    assert counted(engine)["requests_recomputed"] == before["requests_recomputed"] + 1


def worker_half():
    """It lives in this process."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    from vllm_plugin import companions

    return companions.find(get_kv_transfer_group()).connector._worker_half
