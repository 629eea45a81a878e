"""Restore: a request goes on behind the tokens that another server gave out for it, as if it had been here all along.

    argument.py     what the gateway says of those tokens
    limits.py       what goes on exactly, and what is refused by name
    emission.py     API server: gives the tokens out first, as vLLM's own output
    history.py      engine: the tokens are output already, and the grammar has taken them
    generators.py   worker: what seeded requests draw from is where it was
    continuing.py   API server: whether this server continues, proved by a canary

Nothing here imports vLLM, torch or numba before it is asked to.
"""

from typing import Any

KEY = "holdfast_resume"  # of `vllm_xargs`: text from the gateway; inside vLLM a dictionary, made by this server
CHOICES, IDS = "choices", "ids"  # of that: all choices in chunks, for the API server; one choice's tokens, behind it
PROTOCOL = 1


class Given(dict[str, Any]):
    """All choices, as this API server's own code has read them. Who asks vLLM's /inference/v1/generate can write any
    dictionary there, but not this one.
    """
