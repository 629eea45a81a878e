"""The stub's alphabet: token ids, their bytes, and the same as a Hugging Face tokenizer.json.

Ids 0-255 are single bytes, then come the special tokens, then fixed pieces of text. Characters of
several bytes mostly arrive as single-byte tokens, so that a cut can fall inside of one; among the
pieces are some that read like the wire itself, to catch a gateway that searches text for it.

    python -m loadtests.stub_tokenizer DIR [--vocab 8192]
"""

import argparse
import itertools
import json
import re
from functools import cache
from pathlib import Path

BOS, EOS, SYSTEM, USER, ASSISTANT = 256, 257, 258, 259, 260
SPECIALS = {"<|bos|>": BOS, "<|eos|>": EOS, "<|system|>": SYSTEM, "<|user|>": USER, "<|assistant|>": ASSISTANT}
PIECES_START = 261
VOCAB_DEFAULT = 8192
VOCAB_MIN = 512

# One pattern for Python and for Oniguruma: a word with its space, a run of anything else, a space.
SEGMENT = r" ?[A-Za-z]+|[^A-Za-z ]+| "
_SEGMENTS = re.compile(SEGMENT)
_SPECIALS = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")

# Pieces that break naive readers: JSON and SSE lookalikes, separators, whole characters of several bytes.
_NASTY = (
    ',"token_ids":[7,8]', 'data: [DONE]\n\n', '"finish_reason":"stop"', "\r\n", "\n\n", '\\"', "\\u0041", "</s>",
    "\u2028", "é", "中文", "🦀", "}]}", "': ", "\t\t",
)  # fmt: skip


@cache
def token_bytes(vocab: int = VOCAB_DEFAULT) -> tuple[bytes, ...]:
    """Give the bytes of every id; special tokens have none, as they are skipped in text."""
    singles = [bytes([value]) for value in range(256)]
    specials = [b""] * len(SPECIALS)
    return (*singles, *specials, *itertools.islice(_pieces(), vocab - PIECES_START))


def encode(text: str, vocab: int = VOCAB_DEFAULT) -> list[int]:
    """Tokenize text in which the names of special tokens stand for these tokens."""
    ids: list[int] = []
    for part in _SPECIALS.split(text):
        ids += [SPECIALS[part]] if part in SPECIALS else encode_ordinary(part, vocab)
    return ids


def encode_ordinary(text: str, vocab: int = VOCAB_DEFAULT) -> list[int]:
    """Tokenize text in which nothing is special, such as the content of a message."""
    known = _ids(vocab)
    ids: list[int] = []
    for segment in _SEGMENTS.findall(text):
        data = segment.encode("utf-8", "replace")
        found = known.get(data)
        ids += data if found is None else (found,)
    return ids


def decode_bytes(ids: list[int], vocab: int = VOCAB_DEFAULT) -> bytes:
    """Give the bytes of ids, special tokens skipped; they may end inside a character."""
    table = token_bytes(vocab)
    return b"".join([table[token] for token in ids])


def write_tokenizer(folder: Path, vocab: int = VOCAB_DEFAULT) -> Path:
    """Write `tokenizer.json` (and a small `tokenizer_config.json`) that agree with this module."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(_tokenizer_json(vocab), ensure_ascii=False), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@cache
def _ids(vocab: int) -> dict[bytes, int]:
    table = token_bytes(vocab)
    return {table[token]: token for token in range(PIECES_START, vocab)}


def _pieces() -> itertools.chain[bytes]:
    return itertools.chain((piece.encode() for piece in _NASTY), _words())


def _words() -> "itertools.chain[bytes]":
    syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
    two = (" " + "".join(pair) for pair in itertools.product(syllables, repeat=2))
    three = (" " + "".join(triple) for triple in itertools.product(syllables, repeat=3))
    joined = ("".join(pair) for pair in itertools.product(syllables, repeat=2))
    # Words with a space and word endings in turn, so that a small vocabulary has both.
    mixed = itertools.chain.from_iterable(zip(two, joined, strict=True))
    return itertools.chain((word.encode() for word in mixed), (word.encode() for word in three))


def _tokenizer_json(vocab: int) -> dict[str, object]:
    symbols = _byte_symbols()
    specials = {token: name for name, token in SPECIALS.items()}
    names = [
        specials.get(token) or "".join(symbols[byte] for byte in data) for token, data in enumerate(token_bytes(vocab))
    ]
    added = [
        {
            "id": token, "content": name, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True,
        }
        for token, name in sorted(specials.items())
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SEGMENT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            # A segment that is a piece becomes it, any other falls apart into bytes: no merges needed.
            "ignore_merges": True,
            "vocab": {name: token for token, name in enumerate(names)},
            "merges": [],
        },
    }  # fmt: skip


def _byte_symbols() -> list[str]:
    """Give GPT-2's printable symbol for every byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = itertools.count(256)
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


def main() -> None:
    """Write a tokenizer into the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocab", type=int, default=VOCAB_DEFAULT)
    given = parser.parse_args()
    print(write_tokenizer(given.folder, given.vocab))


if __name__ == "__main__":
    main()
