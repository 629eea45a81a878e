"""What is taken out of a step's output, so that vLLM takes it as if nothing had been computed."""

import torch
from vllm.v1.outputs import ModelRunnerOutput

from vllm_plugin.compat import _empty


def test_nothing_of_a_request_is_left_and_nothing_of_others_is_taken():
    """vLLM asserts that a prompt's probabilities come with a token: what is left of them would end the engine."""
    output = ModelRunnerOutput(req_ids=["a", "b"], req_id_to_index={"a": 0, "b": 1}, sampled_token_ids=[[1], [2]])
    kinds = [name for name in ("prompt_logprobs_dict", "prompt_token_id_logprobs_dict") if hasattr(output, name)]
    for name in kinds:
        setattr(output, name, {"a": torch.ones(1), "b": torch.ones(1)})
    _empty(output, "a")
    _empty(output, "gone")

    assert output.sampled_token_ids == [[], [2]]
    assert [list(getattr(output, name)) for name in kinds] == [["b"]] * len(kinds)
