"""Traces are read, scaled, and given text of which prefixes really match."""

import json
from pathlib import Path

import pytest

from loadtests.stub_tokenizer import encode_ordinary
from loadtests.traffic import traces
from loadtests.traffic.traces import BLOCK_TOKENS, Row, Scale, TraceError, prompt, read

MOONCAKE = [
    {"timestamp": 3000, "input_length": 1100, "output_length": 52, "hash_ids": [0, 1, 2]},
    {"timestamp": 1000, "input_length": 1024, "output_length": 7, "hash_ids": [0, 1]},
    {"timestamp": 4500, "input_length": 1536, "output_length": 1, "hash_ids": [0, 7, 8]},
]
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 18:15:46.6805900,374,44\r
2023-11-16 18:15:50.9951690,396,109\r
"""


def mooncake(folder: Path, *rows: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows or MOONCAKE))
    return path


def common(one: str, other: str) -> int:
    """How many tokens two texts begin with that are the same, by a real tokenizer."""
    first, second = encode_ordinary(one), encode_ordinary(other)
    return next(
        (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def test_mooncakes_rows_are_read_in_the_order_of_their_times(tmp_path):
    """Milliseconds, counted from the first one; as many rows as are wanted, of the file's first."""
    found = read(mooncake(tmp_path))

    assert [row.at_s for row in found] == [0.0, 2.0, 3.5]
    assert found[1] == Row(2.0, 1100, 52, (0, 1, 2))
    assert [row.at_s for row in read(mooncake(tmp_path), rows=1)] == [0.0]


def test_azures_rows_are_read(tmp_path):
    """Seven digits of a second's fraction; no prefixes are known."""
    path = tmp_path / "trace.csv"
    path.write_bytes(AZURE.encode())

    first, second = read(path)
    assert (first, second.prompt_tokens, second.tokens) == (Row(0.0, 374, 44), 396, 109)
    assert second.at_s == pytest.approx(4.314579, abs=1e-4)


@pytest.mark.parametrize("scale", [Scale(), Scale(size=0.1), Scale(size=0.25, words=0.7)])
def test_prefixes_that_were_shared_are_shared(tmp_path, scale):
    """To the end of the last block that two rows have alike, and no further, whatever the scale."""
    texts = [prompt(row, number, 7, scale) for number, row in enumerate(read(mooncake(tmp_path)))]
    words = scale.words_of(BLOCK_TOKENS)
    one, longer, other = (text.split() for text in texts)

    assert one == longer[: 2 * words]
    assert common(texts[0], texts[1]) == len(encode_ordinary(texts[0]))
    assert other[:words] == one[:words]
    block = len(encode_ordinary(" " + " ".join(one[:words])))
    assert block <= common(texts[0], texts[2]) <= block + 60
    assert len(longer) == 2 * words + scale.words_of(1100 - 2 * BLOCK_TOKENS)


def test_a_prompt_is_never_longer_than_prompts_may_be(monkeypatch):
    """However its blocks were scaled."""
    monkeypatch.setattr(traces, "PROMPT_TOKENS_MAX", 700)
    row = Row(0.0, 3 * BLOCK_TOKENS, 1, (0, 1, 2))

    assert [len(prompt(row, 0, 7, Scale(size=size)).split()) for size in (0.1, 1.0, 5.0)] == [153, 700, 700]


def test_the_same_seed_makes_the_same_text_and_another_another(tmp_path):
    """So that a run can be made again; rows without hash ids share nothing."""
    rows = read(mooncake(tmp_path))
    lone = Row(0.0, 50, 1)

    assert prompt(rows[0], 0, 7, Scale()) == prompt(rows[0], 3, 7, Scale())
    assert common(prompt(rows[0], 0, 7, Scale()), prompt(rows[0], 0, 8, Scale())) < 60
    assert prompt(lone, 0, 7, Scale()) == prompt(lone, 0, 7, Scale())
    assert common(prompt(lone, 0, 7, Scale()), prompt(lone, 1, 7, Scale())) < 60


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "trace:1: neither"),
        ("a,b\n1,2\n", "trace:1: neither"),
        ('{"timestamp": 1}\n', "trace:1: 'input_length' is missing"),
        (json.dumps(MOONCAKE[0]) + "\n{\n", "trace:2: Expecting"),
        ('{"timestamp": 1, "input_length": -5, "output_length": 1}\n', "trace:1: input_length is -5"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 1, "hash_ids": [1, 2]}\n', "trace:1: 2 hash_ids for 5"),
        ('{"timestamp": 1, "input_length": 513, "output_length": 1, "hash_ids": [1]}\n', "trace:1: 1 hash_ids for 513"),
        ('{"timestamp": 1, "input_length": 1e999, "output_length": 1}\n', "trace:1: cannot convert float infinity"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}\n', "trace:1: timestamp is nan"),
        ('{"timestamp": 1e999, "input_length": 1, "output_length": 1}\n', "trace:1: timestamp is inf"),
        ('{"timestamp": ' + "[" * 100_000, "trace:1: maximum recursion"),
        ('TIMESTAMP,ContextTokens,GeneratedTokens\n"' + "x" * 200_000, "trace: field larger than"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "trace:2: Invalid isoformat"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no request"),
    ],
)
def test_a_bad_trace_is_told_by_its_line(tmp_path, text, words):
    """And by what is wrong with it."""
    path = tmp_path / "trace"
    path.write_text(text)

    with pytest.raises(TraceError) as told:
        read(path)
    assert words in str(told.value)


def test_a_trace_that_is_not_there_is_told(tmp_path):
    """By its name."""
    with pytest.raises(TraceError, match="No such file"):
        read(tmp_path / "none")
