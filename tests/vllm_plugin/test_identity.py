"""What else is in a fingerprint, and what is made of several ranks' and of adapters'."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.vllm_plugin.models import (
    Backend,
    Model,
    Tokenizer,
    bits,
    facts,
    fingerprint,
    flip,
    read,
    vllm_config,
)
from vllm_plugin.fingerprint import (
    ABSENT,
    FINGERPRINT_BYTES,
    FactRefused,
    FingerprintRefused,
    adapter_contents,
    adapter_of,
    engine_of,
    request_of,
)
from vllm_plugin.fingerprint.binding import bound
from vllm_plugin.fingerprint.facts import packed

PLAIN = st.one_of(
    st.none(), st.just(ABSENT), st.booleans(), st.integers(0, 2), st.sampled_from([0.0, 1.0, "", "a", "1", b"", b"a"])
)
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner)
)


def told_apart(value: object) -> object:
    """A value with its kinds: what equals another only if nothing of it differs, 1 and True and 1.0 included."""
    if isinstance(value, dict):
        return ("map", tuple(sorted((key, told_apart(item)) for key, item in value.items())))
    if isinstance(value, list):
        return ("list", tuple(map(told_apart, value)))
    return (type(value).__name__, repr(value))


@given(VALUES, VALUES)
@example(["ab"], ["a", "b"])
@example([["a"], "b"], [["a", "b"]])
@example({"a": ABSENT}, {"a": None})
@example(1, True)
@example({"a": 1, "b": 0}, {"b": 0, "a": 1})
def test_no_two_facts_are_packed_alike(one, other):
    """Nor are different ones of the same: a mapping's order is none."""
    assert (packed(one) == packed(other)) == (told_apart(one) == told_apart(other))


def test_what_is_no_fact_is_refused_and_not_guessed():
    """An object's `repr` may be its address: another fingerprint at each start."""
    loop: list = []
    loop.append(loop)
    for value in (object(), {"a": [object()]}, lambda: 0, loop):
        with pytest.raises(FactRefused):
            packed(value)
    with pytest.raises(FactRefused, match=r"rope\.scaling\[1\]"):
        packed({"scaling": [1, object()]}, "rope")


@given(st.lists(st.binary(max_size=2), max_size=3), st.lists(st.binary(max_size=2), max_size=3))
@example([b"a", b"b"], [b"ab"])
@example([b""], [])
def test_nothing_moves_between_fields(one, other):
    """Lengths and the number of fields are bound as well."""
    assert (bound("k", *one) == bound("k", *other)) == (one == other)
    assert bound("k", *one) != bound("l", *one)
    assert len(bound("k", *one)) == FINGERPRINT_BYTES == 32


CHANGES = {
    "model": [("model_config.dtype", torch.float16), ("model_config.max_model_len", 8192)],
    "quantization": [("model_config.quantization", "awq"), ("hf.quantization_config", {"bits": 8})],
    "attention": [("attention_config.backend", Backend.OTHER), ("cache_config.sliding_window", 128)],
    "kv cache": [
        ("cache_config.block_size", 32), ("cache_config.cache_dtype", "fp8"), ("cache_config.hash_block_size", 16),
        ("cache_config.calculate_kv_scales", None), ("cache_config.mamba_block_size", 8),
    ],
    "topology": [
        ("parallel_config.tensor_parallel_size", 4), ("parallel_config.pipeline_parallel_size", 2),
        ("parallel_config.prefill_context_parallel_size", 2), ("parallel_config.decode_context_parallel_size", 2),
        ("parallel_config.cp_kv_cache_interleave_size", 2), ("parallel_config.enable_expert_parallel", True),
    ],
    "lora": [("lora_config", SimpleNamespace(lora_dtype=torch.bfloat16, fully_sharded_loras=False))],
    "draft": [("speculative_config", SimpleNamespace(method="eagle", draft_model_config=None))],
    "rope": [
        ("hf.rope_parameters", {"rope_theta": 1e6, "rope_type": "default"}),
        ("hf.rope_scaling", {"factor": 2.0}), ("hf.max_position_embeddings", 1),
    ],
    "architecture": [("hf.hidden_size", 65), ("hf.text_config", {"num_key_value_heads": 8, "_name_or_path": "x"})],
}  # fmt: skip


def changed(path: str, value: object):
    config = vllm_config()
    owner, _, name = path.rpartition(".")
    if owner == "hf":
        config.model_config.hf_config.said[name] = value
    else:
        setattr(getattr(config, owner) if owner else config, name, value)
    return config


@pytest.mark.parametrize(
    ("section", "path", "value"), [(section, *one) for section, some in CHANGES.items() for one in some], ids=str
)
def test_any_other_config_is_another_fingerprint_and_says_where(section, path, value):
    """Each by itself; the section that is named is the one it belongs to."""
    right, other = fingerprint(), fingerprint(config=changed(path, value))

    differs = right.differs(other)

    assert section in differs
    assert set(differs) <= {section, "architecture"}
    assert right.common != other.common
    assert right.shard != other.shard


def test_what_is_given_is_in_as_well():
    """vLLM's version, and the form of the pages."""
    assert fingerprint().differs(fingerprint(engine="0.33.0")) == ["engine"]
    assert fingerprint().differs(fingerprint(kv_form="4 of float8 kv2 token16 head4 dim8")) == ["kv cache"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model_config.model", "/elsewhere"), ("hf._name_or_path", "/elsewhere"), ("hf.transformers_version", "6"),
        ("hf.text_config", {"num_key_value_heads": 4, "_name_or_path": "y"}), ("cache_config.num_gpu_blocks", 7),
        ("parallel_config.master_port", 4321), ("parallel_config.data_parallel_size", 8),
    ],
    ids=str,
)  # fmt: skip
def test_where_and_how_many_it_is_does_not_matter(path, value):
    """The same model in another folder, on another port, with more memory, or as one of more replicas."""
    assert fingerprint(config=changed(path, value)) == fingerprint()


def test_what_a_version_does_not_have_is_said():
    """Not left out: with it, whatever it is, the fingerprint is another."""
    assert facts()["kv cache"]["cache_config.calculate_kv_scales"] is ABSENT
    assert facts(SimpleNamespace())["model"] == {"model_config.*": ABSENT}
    assert facts()["lora"] == {"lora_config.*": None}
    config = vllm_config()
    del config.cache_config.block_size
    assert fingerprint(config=config).differs(fingerprint()) == ["kv cache"]


def test_tokenizers():
    """What ids mean is in: vocabulary, merges, special tokens. The chat template, and who padded last, are not."""

    def of(**changes: object):
        tokenizer = Tokenizer()
        vars(tokenizer).update(changes)
        return fingerprint(tokenizer=tokenizer)

    for change in (
        {"vocabulary": {"a": 1, "b": 0, "ab": 2}}, {"all_special_tokens": []},
        {"said": '{"model": {"merges": []}}'}, {"sp_model": SimpleNamespace(serialized_model_proto=lambda: b"x")},
    ):  # fmt: skip
        assert of(**change).differs(of()) == ["tokenizer"]
    assert fingerprint(tokenizer=None).differs(of()) == ["tokenizer"]
    for change in (
        {"chat_template": ""}, {"vocabulary": {"ab": 2, "a": 0, "b": 1}},
        {"said": '{"padding": {"length": 7}, "model": {"merges": ["a b"]}}'},
    ):  # fmt: skip
        assert of(**change) == of()


def test_a_real_tokenizer_is_the_same_however_it_was_used():
    """One of transformers': padding leaves its traces in it."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")

    def made(*merges: tuple[str, str]):
        vocabulary = {"a": 0, "b": 1, "ab": 2, "<e>": 3}
        inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=list(merges)))
        return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>", pad_token="<e>")

    used = made(("a", "b"))
    used(["ab", "a"], padding=True, truncation=True, max_length=1)

    assert fingerprint(tokenizer=used) == fingerprint(tokenizer=made(("a", "b")))
    assert fingerprint(tokenizer=made()).differs(fingerprint(tokenizer=used)) == ["tokenizer"]


@pytest.fixture(scope="module")
def shards():
    """Three ranks of an engine, with weights of their own."""
    model, made = Model(), []
    for rank in range(3):
        flip(model.weight("packed"), rank, 1)
        made.append(fingerprint(rank, 3, read(model)))
    return made


def test_ranks_agree_on_what_is_common_and_only_on_that(shards):
    """The scheduler's half knows from any of them what all of them are of."""
    assert len({shard.common for shard in shards}) == 1
    assert len({shard.shard for shard in shards}) == 3
    assert shards[0].differs(shards[1]) == ["rank", "weights"]
    assert pickle.loads(pickle.dumps(shards[0])) == shards[0]


def test_equal_weights_on_two_ranks_are_two_shards(shards):
    """Where ranks hold the same, their pages are still of different heads or layers."""
    one, other = fingerprint(0, 2), fingerprint(1, 2)

    assert one.weights == other.weights
    assert one.shard != other.shard


def test_an_engine_is_of_its_ranks_in_order(shards):
    """However they come, and told twice or once; another weight on any rank is another engine."""
    engine = engine_of(shards)

    assert engine_of([shards[2], shards[0], shards[1], shards[0]]) == engine
    model = Model()
    flip(model.weight("float8"), 0, 0)
    for rank in range(3):
        assert engine_of([*(s for s in shards if s.rank != rank), fingerprint(rank, 3, read(model))]) != engine
    moved = [fingerprint(rank, 3) for rank in range(3)]
    assert engine_of(moved) != engine


def test_ranks_that_are_not_of_one_engine_are_refused(shards):
    """One missing, one too old, one that is two, none: and it says which."""
    for some, says in (
        (shards[:2], "no 2"), (shards[1:], "no 0"), ([], "no 0"),
        ([*shards[:2], fingerprint(2, 3, engine="0.31")], "0 and 2 are not of one engine: engine differ"),
        ([*shards, fingerprint(1, 3)], "rank 1 is two: weights differ"),
        ([shards[0], fingerprint(1, 2)], "no 1|no 2|not of one"),
    ):  # fmt: skip
        with pytest.raises(FingerprintRefused, match=says):
            engine_of(some)


def layer(scaling: object = 2.0, seed: int = 0, **more: object):
    a, b = bits(4, 64, dtype=torch.bfloat16, seed=seed), bits(32, 4, dtype=torch.bfloat16, seed=seed + 1)
    return SimpleNamespace(rank=4, scaling=scaling, lora_a=a, lora_b=b, **more)


def adapter(**layers: object):
    return SimpleNamespace(id=1, loras=layers or {"q": layer(), "k": layer(seed=5)}, modules_to_save={})


def test_an_adapter_is_its_contents():
    """Not its number, nor the order of its layers; any bit of it, any scale, any layer."""
    right, again = adapter_contents(adapter()), adapter(k=layer(seed=5), q=layer())
    again.id = 7
    assert adapter_contents(again) == right
    assert adapter_contents(adapter(q=layer(scaling=2), k=layer(seed=5))) == right  # 2 is 2.0

    others = [adapter() for _ in range(4)]
    flip(others[0].loras["q"].lora_a, 255, 15)
    flip(others[1].loras["k"].lora_b, 0, 0)
    others[2].loras["q"].scaling = 1.0
    others[3].modules_to_save = {"lm_head": SimpleNamespace(weight=torch.zeros(2), bias=None)}
    swapped, fewer = adapter(k=layer(), q=layer(seed=5)), adapter(q=layer())
    turned = adapter(q=layer(), k=layer(seed=5))
    turned.loras["q"].lora_a, turned.loras["q"].lora_b = turned.loras["q"].lora_b, turned.loras["q"].lora_a
    found = [adapter_contents(one) for one in (*others, swapped, fewer, turned)]

    assert len({right, *found}) == 8


def test_packed_adapters_have_lists():
    """q, k and v in one, of which some may have nothing."""
    one, other = layer(scaling=[1, None, 1.0]), layer(scaling=[1.0, None, 1])
    one.lora_a, one.lora_b = [one.lora_a, None, one.lora_a], [one.lora_b, None, one.lora_b]
    other.lora_a, other.lora_b = [*one.lora_a], [*one.lora_b]
    right = adapter_contents(adapter(qkv=one))
    assert adapter_contents(adapter(qkv=other)) == right

    other.lora_a = [one.lora_a[0], one.lora_a[0], None]
    assert adapter_contents(adapter(qkv=other)) != right


def test_a_requests_pages_are_of_model_and_adapter(shards):
    """With another adapter, or none, or of another model: others. Which are loaded besides does not matter."""
    first, second = adapter_contents(adapter()), adapter_contents(adapter(q=layer()))
    engine = engine_of(shards)
    every = adapter_of({0: first, 1: first, 2: second}, 3)

    found = [
        engine, request_of(engine, every), request_of(engine, adapter_of({0: first, 1: second, 2: first}, 3)),
        request_of(shards[0].shard, first), request_of(shards[0].shard, second), request_of(shards[1].shard, first),
    ]  # fmt: skip
    assert request_of(engine) == engine
    assert len(set(found)) == len(found)
    assert all(len(one) == 32 for one in found)
    with pytest.raises(FingerprintRefused, match="rank 1"):
        adapter_of({0: first, 2: first}, 3)


def test_fingerprints_never_change():
    """Pages that were stored are of these: other values are another `VERSION`."""
    known = [bound("k", b"a"), bound("section", packed({"a": [1, None, ABSENT, 2.5, True, "b", torch.bfloat16]}))]

    assert [one.hex()[:16] for one in known] == ["69d5a73c9334e9e2", "eede2ef0d8d7bfe9"]
