"""The canary: a request that is continued here must go on as it would have. Asked before anybody believes in that."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from vllm_plugin.restore import CHOICES, KEY, Given

PROMPT_TOKENS, TOKENS, KNOWN = 12, 8, 4
SEED = 7
CANARY_S_MAX = 30.0


async def sings(client: Any, number: int, *, seeded: bool) -> bool:
    """Whether a request of 8 tokens, continued after 4, has the other 4. client: of the engines.

    number: another one for each try. seeded: sampled, by a seed; else greedy. Raises TimeoutError, and whatever vLLM
    does.
    """
    vocabulary = client.model_config.get_vocab_size()
    prompt = [(1 + number * 97 + token * 31) % vocabulary for token in range(PROMPT_TOKENS)]
    async with asyncio.timeout(CANARY_S_MAX):
        whole = await _tokens(client, prompt, seeded, [])
        again = await _tokens(client, prompt, seeded, whole[:KNOWN])
    return len(whole) == TOKENS and again == whole


async def _tokens(client: Any, prompt: Sequence[int], seeded: bool, known: Sequence[int]) -> list[int]:
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    params = SamplingParams(
        temperature=1.0 if seeded else 0.0, seed=SEED if seeded else None, max_tokens=TOKENS, ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
    )  # fmt: skip
    if known:
        params.extra_args = {KEY: Given({CHOICES: [[[token] for token in known]]})}
    name = f"holdfast-canary-{uuid.uuid4().hex}"
    return [
        token
        async for output in client.generate(tokens_input(list(prompt)), params, name)
        for token in output.outputs[0].token_ids
    ]
