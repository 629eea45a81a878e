"""vLLM's OffloadingConnector without the plugin: what a page does that was damaged where it was offloaded."""

from tests.vllm_plugin.real.engine import Engine, prompts
from tests.vllm_plugin.real.test_beside_offloading import OFFLOADING, SMALL, TOKENS, forget


def test_a_page_damaged_where_it_was_offloaded_makes_wrong_answers(tmp_path):
    """For whoever it is brought back to."""
    ((prompt,),) = prompts(31, families=1, each=1, shared=0, own=210)
    engine = Engine(tmp_path, {}, beside=[OFFLOADING], **SMALL)
    from tests.vllm_plugin.real.offload import Copies

    right = engine.ask(prompt, TOKENS)
    for _ in range(3):
        engine.step()
    forget(engine)
    assert engine.ask(prompt, TOKENS) == right
    assert Copies.latest.loaded
    forget(engine)
    for layer in Copies.latest.there:
        layer[1:3] = 0

    assert engine.ask(prompt, TOKENS) != right
    engine.stop()
