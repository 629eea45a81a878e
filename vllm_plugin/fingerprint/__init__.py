"""The fingerprint of a model: what its KV pages are of, so that none is ever used by another version of it.

vLLM's hashes of blocks are of tokens, not of models, and a model's name is none. So pages are bound to the contents of
what computed them (32 bytes of BLAKE3, over tile sums as `vllm_plugin.digest` has them):

    weights     of one rank: name, dtype, shape and contents of all parameters and buffers, and of what kernels took
    sections    what configs, tokenizer and the cache's form say, alike on all ranks: a digest each, so that what
                differs has a name
    common      = over sections and the number of ranks
    shard       = over common, rank, weights         one rank's pages: the `model` of their `Header`
    engine      = over common, and shards by rank    what the scheduler's half has to know
    request     = over engine or shard, and the adapter's contents, where a request has an adapter

What is found: one wrong bit of any weight, certainly; also what `vllm_plugin.digest` promises of two, and of more, in a
tile. Names, forms, order and sections are under BLAKE3. Against accidents, not against people: sums are linear.

In a worker, when its model is loaded and its cache is there:

    models = {"": worker.get_model()} | ({"draft.": draft} if (draft := worker.get_draft_model()) else {})
    reading = Reading.of(weights_of(models))
    facts = facts_of(vllm_config, engine=vllm.__version__, kv_form=pages.form, tokenizer=tokenizer)
    mine = Fingerprint.of(facts, reading, rank=worker.rank, ranks=parallel_config.world_size)

again after each `Reason` that `watch_all` tells of, and a `Watchman` for those of which nobody tells.
"""

from vllm_plugin.fingerprint.adapters import adapter_contents
from vllm_plugin.fingerprint.binding import FINGERPRINT_BYTES
from vllm_plugin.fingerprint.changes import (
    CALLS,
    Call,
    OnChange,
    Reason,
    WaysAbsent,
    absent,
    watch_all,
    watch_weight_changes,
)
from vllm_plugin.fingerprint.facts import ABSENT, FactRefused
from vllm_plugin.fingerprint.identity import Fingerprint, FingerprintRefused, adapter_of, engine_of, request_of
from vllm_plugin.fingerprint.reading import Reading
from vllm_plugin.fingerprint.tokenizer import tokenizer_facts
from vllm_plugin.fingerprint.vllm_facts import facts_of
from vllm_plugin.fingerprint.watchman import Cycle, Difference, Generation, Pace, Watchman
from vllm_plugin.fingerprint.weights import Weight, WeightsRefused, weights_of

__all__ = [
    "ABSENT", "CALLS", "FINGERPRINT_BYTES", "Call", "Cycle", "Difference", "FactRefused", "Fingerprint",
    "FingerprintRefused", "Generation", "OnChange", "Pace", "Reading", "Reason", "Watchman", "WaysAbsent", "Weight",
    "WeightsRefused", "absent", "adapter_contents", "adapter_of", "engine_of", "facts_of", "request_of",
    "tokenizer_facts", "watch_all", "watch_weight_changes", "weights_of",
]  # fmt: skip
