"""Kinds of requests that a server is lost under: what is in the table of docs/continuing.md, and nothing else."""

from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EOS = 1  # <|eos|>
END_OF_TURN = 5  # <|end|>
WORDS = "Tell me, at some length, of the tides in the harbour and of what the weather did to them last week."
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 14}, "count": {"type": "integer"},
        "kinds": {"type": "array", "items": {"enum": ["spring", "neap"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "count", "kinds"], "additionalProperties": False,
}  # fmt: skip
COMPACT = {"json": SCHEMA, "disable_any_whitespace": True}
GRAMMAR = 'root ::= "tides: " list "."\nlist ::= word | word ", " list\nword ::= [a-z] [a-z] [a-z]'
CALL = (
    r'<tool_call>\n\{"name": "(weather|tides)", "arguments": '
    r'\{"city": "[a-z]{3,12}", "days": [1-9][0-9]?\}\}\n</tool_call>'
)
TAG = {
    "type": "structural_tag", "triggers": ["<"],
    "structures": [{"begin": "<x>", "schema": {"type": "integer"}, "end": "</x>"}],
}  # fmt: skip
LESS = 33  # <
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    }}}
    for name in ("weather", "tides")
]  # fmt: skip
SEEDED: dict[str, Any] = {"temperature": 1.0, "seed": 11}
GREEDY: dict[str, Any] = {"temperature": 0}


def chat(tokens: int = 24, **more: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": [{"role": "user", "content": WORDS}], "max_tokens": tokens} | more


def completion(tokens: int = 24, **more: Any) -> tuple[str, dict[str, Any]]:
    return COMPLETIONS, {"prompt": WORDS, "max_tokens": tokens} | more


def structured(**how: Any) -> tuple[str, dict[str, Any]]:
    return chat(60, structured_outputs=how, **SEEDED)


KINDS = {
    "greedy": chat(**GREEDY),
    "greedy, logprobs": chat(logprobs=True, top_logprobs=3, **GREEDY),
    "seed, top_p": chat(temperature=0.8, top_p=0.9, seed=1),
    "seed, top_k": chat(temperature=1.3, top_k=40, seed=2),
    "seed, min_p": chat(temperature=1.0, min_p=0.02, seed=3),
    "seed, logprobs": chat(logprobs=True, top_logprobs=2, **SEEDED),
    "penalties": chat(presence_penalty=0.7, frequency_penalty=0.5, repetition_penalty=1.2, **SEEDED),
    "penalties, greedy": chat(presence_penalty=1.5, frequency_penalty=1.0, repetition_penalty=1.3, **GREEDY),
    "bad_words": chat(bad_words=["the", " of", "self", "return"], **SEEDED),
    "logit_bias": chat(logit_bias={"300": 4, "301": 4, "302": 3.5}, **SEEDED),
    "allowed_token_ids": chat(allowed_token_ids=list(range(300, 340)), **SEEDED),
    "min_tokens": chat(40, min_tokens=15, logit_bias={str(EOS): 9, str(END_OF_TURN): 9}, **SEEDED),
    "ignore_eos": chat(ignore_eos=True, logit_bias={str(EOS): 6}, skip_special_tokens=False, **SEEDED),
    "repetition_detection": chat(
        60, logit_bias={"300": 40},
        repetition_detection={"max_pattern_size": 3, "min_pattern_size": 1, "min_count": 18}, **GREEDY,
    ),
    "stream_interval": chat(stream_interval=3, **SEEDED),
    "usage with each": chat(stream_options={"include_usage": True, "continuous_usage_stats": True}, **SEEDED),
    "json_schema": chat(90, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
                        **SEEDED),
    "json_object": chat(40, response_format={"type": "json_object"}, **SEEDED),
    "json_schema, penalties": chat(90, structured_outputs=COMPACT, presence_penalty=1.0, **SEEDED),
    "regex": structured(regex=r"([a-z]{4}-[0-9]{2} ){2,4}end"),
    "choice": structured(choice=["spring tides and neap tides", "spring storms", "neither of them this week"]),
    "grammar": structured(grammar=GRAMMAR),
    "structural_tag": chat(40, response_format=TAG, logit_bias={str(LESS): 6}, **SEEDED),
    "tool, named": chat(70, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "tides"}}, **SEEDED),
    "tool, required": chat(90, tools=TOOLS, tool_choice="required", **SEEDED),
    "tool, auto": chat(70, tools=TOOLS, tool_choice="auto", structured_outputs={"regex": CALL}, **SEEDED),
    "n=2": chat(n=2, **SEEDED),
    "n=3, ended early": chat(40, n=3, logit_bias={str(EOS): 5}, **SEEDED),
    "n=3, logprobs": chat(n=3, logprobs=True, top_logprobs=1, **SEEDED),
    "n=2, json_schema": chat(90, n=2, structured_outputs=COMPACT, **SEEDED),
    "completion, greedy": completion(**GREEDY),
    "completion, seed": completion(logprobs=2, **SEEDED),
    "completion, tokens": (COMPLETIONS, {"prompt": [300 + 7 * i % 5000 for i in range(50)], "max_tokens": 24} | SEEDED),
    "completion, n=2": completion(n=2, **SEEDED),
    "echo": completion(echo=True, **SEEDED),
    "echo, logprobs": completion(echo=True, logprobs=1, **SEEDED),
    "echo, n=2": completion(echo=True, n=2, **SEEDED),
}  # fmt: skip
THINKING: dict[str, Any] = {"temperature": 1.0, "seed": 4, "logit_bias": {"8191": 6.5}}
REASONING = {
    "reasoning": chat(40, **THINKING),
    "reasoning, json_schema": chat(
        120, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, **THINKING
    ),
    "reasoning, tool required": chat(120, tools=TOOLS, tool_choice="required", **THINKING),
    "reasoning, tool named": chat(
        120, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}}, **THINKING
    ),
    "reasoning, tool auto": chat(120, tools=TOOLS, structured_outputs={"regex": CALL}, **THINKING),
    "reasoning, n=2, logprobs": chat(40, n=2, logprobs=True, top_logprobs=1, **THINKING),
    "reasoning, json_schema, compact": chat(120, structured_outputs=COMPACT, **THINKING),
    "reasoning, stop": chat(60, stop=["ing", "er"], min_tokens=8, **THINKING),
}
