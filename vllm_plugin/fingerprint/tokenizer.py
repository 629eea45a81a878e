"""What token ids stand for."""

import json
from typing import Any

# Not of the tokenizer but of who called it last, and kept in it.
PASSING = ("padding", "truncation")


def tokenizer_facts(tokenizer: Any | None) -> dict[str, Any]:
    """The facts of a tokenizer, which may be any of transformers' or tokenizers'; of None, that there is none.

    A page is of token ids, and given those no tokenizer changes it. It is bound all the same: where ids mean other
    text, one model is not another's, and a stream that went on there would be spliced from two languages. So what
    belongs to it is what ids mean: vocabulary, added and special tokens, merges, normalizer and decoder. What does not
    is the chat template: another one makes other ids, which are another page's anyhow.
    """
    if tokenizer is None:
        return {"class": None}
    fast = getattr(tokenizer, "backend_tokenizer", None) or (tokenizer if hasattr(tokenizer, "to_str") else None)
    pieces = getattr(getattr(tokenizer, "sp_model", None), "serialized_model_proto", None)
    return {
        # its class is left out: vLLM makes one of its own, named after it, for each that it caches
        "vocabulary": json.dumps(sorted((str(token), int(number)) for token, number in tokenizer.get_vocab().items())),
        "special": sorted(map(str, getattr(tokenizer, "all_special_tokens", ()))),
        "pipeline": None if fast is None else _pipeline(fast.to_str()),
        "pieces": None if pieces is None else pieces(),
    }


def _pipeline(text: str) -> str:
    """Merges and all that is done to text, as JSON, its keys in order."""
    said = json.loads(text)
    for name in PASSING:
        said.pop(name, None)
    return json.dumps(said, sort_keys=True)
