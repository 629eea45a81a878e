"""Real vLLM with a store in shared memory, started anew on other weights under the same name: nothing is shared."""

from pathlib import Path
from tempfile import mkdtemp

import pytest

from tests.vllm_plugin.real import weights
from tests.vllm_plugin.real.engine import MODEL, Engine, prompts

TOKENS = 16


@pytest.fixture
def serve(tmp_path):
    """Starts an engine on a model's weights times a factor, always under the same name, and ends the one before."""
    engines: list[Engine] = []

    def started(factor: float, plugin: bool = True) -> Engine:
        for engine in engines:
            engine.stop()
        engines.clear()
        weights.checkpoint(MODEL, tmp_path / "model", factor)
        settings = {"store": f"lmdb://{tmp_path}/pages?size=64MiB"}
        folder = Path(mkdtemp(dir=tmp_path))
        engines.append(Engine(folder, settings if plugin else None, model=str(tmp_path / "model")))
        return engines[0]

    yield started
    for engine in engines:
        engine.stop()


def test_the_same_name_with_other_weights_shares_nothing(serve):
    """And the same weights share all: so it is the weights that keep them apart."""
    ((prompt,),) = prompts(43, families=1, each=1, shared=150, own=30)
    right = {factor: serve(factor, plugin=False).ask(prompt, TOKENS) for factor in (1.0, 8.0)}
    assert right[1.0] != right[8.0]

    one = serve(1.0)
    said = {"kv_transfer_params": {"holdfast_session": "alice"}}
    assert one.ask(prompt, TOKENS, extra_args=said) == right[1.0]
    assert one.settled("holdfast_pages_saved", 1) > 0
    other = serve(8.0)
    assert other.ask(prompt, TOKENS) == right[8.0]
    assert other.metric("holdfast_pages_loaded") == 0
    assert "alice" in {session.name for session in other.scheduler.connector._store.sessions()}
    again = serve(1.0)
    assert again.ask(prompt, TOKENS) == right[1.0]
    assert again.metric("holdfast_pages_loaded") == 5
    assert again.metric("holdfast_pages_corrupt") == 0
