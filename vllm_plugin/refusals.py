"""What Holdfast does not start with: each in one line, with what to write instead. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


class RefusedAtStart(ValueError):
    """This configuration would not be protected as promised."""

    @classmethod
    def saying(cls, lines: Sequence[str]) -> "RefusedAtStart":
        """All that is against it, each in one line."""
        return cls("Holdfast does not start:\n" + "\n".join(f"    {line}" for line in lines))


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found of vLLM's configuration. groups: of the KV cache, the kind of each, in words."""

    prefix_caching: bool = True
    encoder_decoder: bool = False
    context_parallel: bool = False
    async_scheduling: bool = False
    v2_runner: bool = False
    speculative_decoding: bool = False
    pipeline_parallel: bool = False
    groups: Sequence[str] = ("full attention",)
    workers: int = 1
    pooling: bool = False
    own_logits_processors: bool = False
    watermarks: bool = False


ATTENTION = {"full attention", "sliding window", "latent attention"}
WEIGHTS = "weights"  # are not looked at: pages are bound to what was asked to be loaded
BESIDE = {"HoldfastConnector", "OffloadingConnector", "ExampleConnector"}  # members that were tried together
OTHERS = "other-connectors"
UNPROVED = (
    ("async-scheduling", "async_scheduling", "--no-async-scheduling"),
    ("v2-runner", "v2_runner", "VLLM_USE_V2_MODEL_RUNNER=0"),
    ("speculative-decoding", "speculative_decoding", "no --speculative-config"),
    ("pipeline-parallel", "pipeline_parallel", "--pipeline-parallel-size 1"),
)


def refusals(facts: Facts, unprotected: frozenset[str], store: str = "") -> list[str]:
    """Why not to start, in whole lines; empty if there is nothing against it. store: of the settings."""
    lines = []
    if not facts.prefix_caching:
        lines.append("prefix caching is off, and pages are known by their prefix: write --enable-prefix-caching")
    if facts.encoder_decoder:
        lines.append("encoder-decoder models keep pages that no connector sees: serve this one without Holdfast")
    if facts.context_parallel:
        lines.append("a page of a context-parallel rank is no run of tokens: write --decode-context-parallel-size 1")
    if len(facts.groups) != 1 or not ATTENTION.issuperset(facts.groups):
        lines.append(f"its KV cache is {', '.join(facts.groups)}; only one group of attention layers is guarded so far")
    if store and facts.workers > 1:
        lines.append(f"the pages of {facts.workers} workers are in no store together so far: leave «store» out")
    for word, field, instead in UNPROVED:
        if getattr(facts, field) and word not in unprotected:
            lines.append(
                f'{word} is on: nobody has shown that a running request is stopped in time. Write {instead}, or, to '
                f'have prefix hits verified only, "unprotected":["{word}"] in kv_connector_extra_config'
            )
    return lines


def of_weights(why: str) -> str:
    """The line for weights that cannot be bound to pages. why: in words."""
    return (
        f"pages cannot be bound to these weights: {why}. Where they are never changed under one name, write "
        f'"unprotected":["{WEIGHTS}"] in kv_connector_extra_config'
    )


def refusals_of_policy(policy: str) -> list[str]:
    """policy: `kv_load_failure_policy` of the whole, beside whatever members it has."""
    if policy == "recompute":
        return []
    return [
        f'kv_load_failure_policy is "{policy}", and one bad page would fail its request: '
        'write "kv_load_failure_policy":"recompute"'
    ]


def refusals_beside(names: Sequence[str], *, nested: bool, unprotected: frozenset[str]) -> list[str]:
    """Why not to start among these members of a MultiConnector. nested: one of them has Holdfast as a member itself."""
    if nested:
        return [
            "HoldfastConnector is a member of a member, where nobody asks it: write it into the outer "
            '"connectors":[{"kv_connector":"HoldfastConnector",...},...]'
        ]
    lines = []
    if names.count("HoldfastConnector") > 1:
        lines.append("HoldfastConnector is there twice, and each would wait for the other: write it once")
    strangers = sorted({name for name in names if name not in BESIDE})
    if strangers and OTHERS not in unprotected:
        lines.append(
            f"nobody has tried it beside {', '.join(strangers)}: leave that out, or, to have what it brings verified "
            f'as of those that were tried ({", ".join(sorted(BESIDE - {"HoldfastConnector"}))}), write '
            f'"unprotected":["{OTHERS}"] in HoldfastConnector\'s kv_connector_extra_config'
        )
    return lines


def is_protected(facts: Facts) -> bool:
    """Whether the output of a step can be thrown away before anybody has seen it."""
    return not any(getattr(facts, field) for _, field, _ in UNPROVED)
