"""Servers' words: what users need of them survives to the letter, where they come from does not."""

import ipaddress
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.http.scrub import ADDRESS, FILE, WORDS_MAX, Scrub

HOSTS = ["gpu-7", "vllm", "node1.dc2.example.com", "10.1.2.3"]
scrub = Scrub(HOSTS)

VERBATIM = [
    "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens (2800 in the messages, "
    "200 in the completion). Please reduce the length of the messages or completion.",
    "This model's maximum context length is 4096 tokens. However, your request has 5012 input tokens. Please reduce "
    "the length of the input messages.",
    "The decoder prompt (length 5012) is longer than the maximum model length of 4096. Make sure that `max_model_len` "
    "is no smaller than the number of text tokens.",
    "'max_tokens' or 'max_completion_tokens' is too large: 9000. This model's maximum context length is 4096 tokens "
    "and your request has 12 input tokens (9000 > 4096 - 12).",
    "max_tokens must be at least 1, got 0.",
    "temperature must be non-negative, got -1.0.",
    "top_p must be in (0, 1], got 1.5.",
    "Requested sample logprobs of 50, which is greater than max allowed: 20",
    "n must be 1 when using greedy sampling, got 2.",
    "stop cannot contain an empty string.",
    '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one.",
    "1 validation error for ValidatorIterator\n0.content.str\n  Input should be a valid string [type=string_type, "
    "input_value=5, input_type=int]\n    For further information visit https://errors.pydantic.dev/2.12/v/string_type",
    "[{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required', 'input': {'n': 1, 'seed': 12345}}]",
    '{"error":{"loc":["body","stop",0],"max_tokens":4096,"temperature":0.5}}',
    "Token id 99999 is out of vocabulary",
    "logit_bias: token_id(s) [200000] contain out-of-vocab token ids. Vocabulary size: 151936",
    "Failed to convert the grammar from GBNF to EBNF: line 12:34 near ::= and std::vector<int> x[::2] at 12:30:45",
    "Invalid regex: ^/v1/[a-z]+/\\d{2,5}$ and a/b, 1/2, and/or, C:\\x, ../x",
    "vLLM version 0.11.0, CUDA 12.8, vllm 0.11.0rc2.dev1+gabcdef",
    "vllm does not support this. Ratio 3:100, key:1234, max_tokens:2048, a:b:c.",
    "Unknown part type: input_audio; see https://docs.vllm.ai/en/latest/features/multimodal_inputs.html.",
]

HIDDEN = {
    "Cannot connect to host 10.0.0.5:8000 ssl:default": f"Cannot connect to host {ADDRESS} ssl:default",
    "from 192.168.1.17, port 80": f"from {ADDRESS}, port 80",
    "at [fd00::12:3]:8000.": f"at {ADDRESS}.",
    "via fe80::1%eth0 and ::1 and 2001:db8::7:": f"via {ADDRESS} and {ADDRESS} and {ADDRESS}:",
    "mapped ::ffff:10.2.3.4 too": f"mapped {ADDRESS} too",
    "http://10.0.0.5:8000/v1/x?y=1 failed": f"{ADDRESS} failed",
    "tcp://gpu-7:5555, ipc:///tmp/9f.sock.": f"{ADDRESS}, {ADDRESS}.",
    "(see http://10.0.0.5/x?y=[1])": f"(see {ADDRESS}])",
    "redis://user:pass@cache:6379/0": ADDRESS,
    "https://errors.pydantic.dev.evil.lan/x": ADDRESS,
    "localhost:8000 refused": f"{ADDRESS} refused",
    "HTTPConnectionPool(host='gpu-7', port=8000)": f"HTTPConnectionPool(host='{ADDRESS}', port=8000)",
    "GPU-7 is full; gpu-77 is not": f"{ADDRESS} is full; gpu-77 is not",
    "node1.dc2.example.com said": f"{ADDRESS} said",
    "vllm:8000 said, vllm did": f"{ADDRESS} said, vllm did",
    "worker-3.cache.svc.cluster.local gone": f"{ADDRESS} gone",
    "store.example.org:6379 gone": f"{ADDRESS} gone",
    'File "/usr/local/lib/python3.12/site-packages/vllm/engine.py", line 3': f'File "{FILE}", line 3',
    "no /home/me/models/llama-7b/config.json": f"no {FILE}",
    "~/data/x is no path of ours, /root/.cache/huggingface/hub is": f"{FILE} is no path of ours, {FILE} is",
}


@pytest.mark.parametrize("said", VERBATIM)
def test_words_on_a_bad_request_survive(said):
    """What vLLM really says reaches the user to the letter."""
    assert scrub(said) == said


@pytest.mark.parametrize("said", HIDDEN)
def test_what_tells_of_the_house_does_not(said):
    """Addresses, hosts, URLs and files are taken out, and the rest of the sentence stays."""
    assert scrub(said) == HIDDEN[said]


around = st.sampled_from(["", " ", "(", '"', "'", ",", "=", "\n", "to ", "<", "`"])
behind = st.sampled_from(["", " ", ")", '"', "'", ",", ". ", "\n", ":", ": ", ">", "`", "/x", "]"])
ports = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))


@given(around, st.ip_addresses(v=4), ports, behind)
def test_no_ipv4_address_survives(before, address, port, after):
    """Whatever stands around it."""
    assert str(address) not in scrub(f"cannot reach {before}{address}{port}{after}")


@given(around, st.ip_addresses(v=6), st.integers(1, 65535), st.booleans(), behind)
@example("", ipaddress.ip_address("fd00:1:2:3:4:5:6:7"), 8000, False, "")
@example("", ipaddress.ip_address("fd00::1"), 8000, False, ": ")
def test_no_ipv6_address_survives(before, address, port, bracketed, after):
    """In all its spellings; one with a single group and no brackets may pass, since it is nobody's server."""
    groups = sum(map(bool, str(address).split(":")))
    written = f"[{address}]:{port}" if bracketed else address.exploded if groups < 2 else str(address)
    assert written.strip("[]") not in scrub(f"cannot reach {before}{written}{after}")


@given(around, st.sampled_from(["gpu-7", "node1.dc2.example.com", "GPU-7", "vllm:8000", "10.1.2.3"]), behind)
def test_no_replica_survives(before, host, after):
    """The replicas' own names are known, whatever they look like."""
    assert host not in scrub(f"cannot reach {before}{host}{after}")


@given(st.text(max_size=300))
def test_text_without_any_of_it_is_left_alone(said):
    """Scrubbing again changes nothing, and prose in any script stays."""
    once = scrub(said)
    assert scrub(once) == once
    if not any(char in said for char in ":./"):
        assert once == said or "gpu-7" in said.lower()


def test_words_are_cut_where_they_are_absurdly_long():
    """A server's body has a limit of megabytes, its words to a client one of kilobytes."""
    assert len(scrub("prompt " * 100_000)) == WORDS_MAX + 1


@pytest.mark.parametrize("piece", ["a.", "1.", "1:", "::", "a:", "/usr/", "h://", "a-", "[", "0:0:0:", "a.b:1"])
def test_hostile_words_cost_no_time(piece):
    """No pattern goes wild over what a server repeats: many times the length takes about as many times as long."""

    def cost_s(length: int) -> float:
        said = (piece * length)[:length]
        best = 9.9
        for _ in range(5):
            begun = time.thread_time()
            scrub(said)
            best = min(best, time.thread_time() - begun)
        return best

    assert cost_s(16_000) < 100 * max(cost_s(1000), 20e-6)
