"""Requests of every kind that goes on by replay, written for the thinking model: see `continuations`.

Its weights are random, so that what it says is shaped from outside: by grammars, biases and bans.
"""

from typing import Any

from tests.vllm_plugin.real.kinds import TOOLS
from tests.vllm_plugin.real.restored import END, THINK

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOKENS = 48
SEEDED = {"seed": 11, "temperature": 0.9}
WARM = {"seed": 5, "temperature": 1.3, "top_p": 0.9, "top_k": 40}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 16},
        "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 4},
        "kind": {"enum": ["circle", "square", "triangle"]},
    },
    "required": ["name", "sizes", "kind"],
    "additionalProperties": False,
}  # fmt: skip
GRAMMAR = 'root ::= expr\nexpr ::= term (" + " term){5,9}\nterm ::= [0-9]{1,4} | "(" [a-z]{2,5} ")"'
CALL = (
    '<tool_call>\\n\\{"name": "weather", "arguments": \\{"city": "[a-z]{4,12}", "days": [0-9]{1,3}\\}\\}\\n</tool_call>'
)


def chat(**more: Any) -> dict[str, Any]:
    """A chat whose thoughts are over when the answer begins."""
    messages = [{"role": "user", "content": "Write some lines about sockets.<think></think>"}]
    common = {"model": "tiny", "messages": messages, "max_tokens": TOKENS, "ignore_eos": True}
    return common | {"chat_template_kwargs": {"enable_thinking": False}} | more


def thought(**more: Any) -> dict[str, Any]:
    """A chat whose model thinks for some twenty tokens."""
    bias = {str(THINK): -100, str(END): 5.4}
    messages = [{"role": "user", "content": "Think of sockets."}]
    return {"model": "tiny", "messages": messages, "max_tokens": TOKENS, "logit_bias": bias} | SEEDED | more


def text(**more: Any) -> dict[str, Any]:
    common = {"model": "tiny", "prompt": "def main():", "max_tokens": TOKENS, "ignore_eos": True}
    return common | more


def schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


BEGUN = [{"role": "user", "content": "Hi<think></think>"}, {"role": "assistant", "content": "Once"}]
NAMED = {"type": "function", "function": {"name": "tides"}}
FREE = {"ignore_eos": False, "max_tokens": 160}
SPARSE = {"frequency_penalty": 2.0}  # else it would say nothing but white space where a grammar lets it
KINDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "greedy": [(CHAT, chat(temperature=0)), (TEXT, text(temperature=0, repetition_penalty=1.2))],
    "seeds": [(CHAT, chat(**SEEDED)), (CHAT, chat(**WARM)), (TEXT, text(**SEEDED))],
    "penalties": [
        (CHAT, chat(presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.2, **SEEDED)),
        (CHAT, chat(presence_penalty=-0.5, temperature=0)),
    ],
    "bad_words, min_tokens, stop_token_ids": [
        (CHAT, chat(bad_words=["self", " the", "in"], **SEEDED)),
        (CHAT, chat(min_tokens=30, stop_token_ids=list(range(300, 1500)), **SEEDED)),
    ],
    "stop strings": [
        (CHAT, chat(stop=["e", "qq"], min_tokens=25, **SEEDED)),
        (CHAT, chat(stop=["er", "o"], min_tokens=20, include_stop_str_in_output=True, **WARM)),
    ],
    "JSON schema": [
        (CHAT, chat(response_format=schema_of(SCHEMA), **SPARSE, **SEEDED, **FREE)),
        (CHAT, chat(structured_outputs={"json": SCHEMA}, **SPARSE, **WARM, **FREE)),
    ],
    "regex, choice, grammar": [
        (CHAT, chat(structured_outputs={"regex": "[a-f]{4}(-[0-9]{2,5}){6,9}"}, **SEEDED, **FREE)),
        (CHAT, chat(structured_outputs={"choice": ["a long way round the hills", "along the river", "aloft"]}, **SEEDED,
                    **FREE)),
        (CHAT, chat(structured_outputs={"grammar": GRAMMAR}, **SEEDED, **FREE)),
    ],
    "tools: named, required": [
        (CHAT, chat(tools=TOOLS, tool_choice=NAMED, **SEEDED, **FREE)),
        (CHAT, chat(tools=TOOLS, tool_choice="required", **SEEDED, **FREE)),
    ],
    "tools: auto": [(CHAT, chat(tools=TOOLS, structured_outputs={"regex": CALL}, **SEEDED, **FREE))],
    "reasoning": [
        (CHAT, thought()),
        (CHAT, thought(temperature=0, logit_bias={})),
        (CHAT, thought(n=2, logprobs=True, top_logprobs=2)),
    ],
    "reasoning, then a schema or a tool": [
        (CHAT, thought(response_format=schema_of(SCHEMA), max_tokens=150, **SPARSE)),
        (CHAT, thought(tools=TOOLS, tool_choice="required", max_tokens=150, **SPARSE)),
    ],
    "logprobs": [
        (CHAT, chat(logprobs=True, top_logprobs=3, **SEEDED)),
        (CHAT, chat(logprobs=True, temperature=0)),
        (TEXT, text(logprobs=2, **SEEDED)),
    ],
    "n=2, n=3, an early end": [
        (CHAT, chat(n=2, **SEEDED)),
        (CHAT, chat(n=3, ignore_eos=False, logit_bias={"1": 4.0}, **SEEDED)),
    ],
    "echo": [
        (TEXT, text(echo=True, **SEEDED)),
        (TEXT, text(echo=True, logprobs=1, temperature=0)),
        (CHAT, chat(echo=True, messages=BEGUN, add_generation_prompt=False, continue_final_message=True, **SEEDED)),
    ],
    "several prompts": [
        (TEXT, text(prompt=["def main():", "import os", "class Node"], max_tokens=24, **SEEDED)),
        (TEXT, text(prompt=["def main():", "import os"], n=2, max_tokens=24, **SEEDED)),
    ],
    "no seed of the client's": [(CHAT, chat(temperature=0.9)), (TEXT, text(temperature=1.1))],
}  # fmt: skip
