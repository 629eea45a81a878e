"""The report on replication says no where it should."""

from typing import Any

import pytest

from tests.prove import replication

ROUND = {
    "tokens_per_s": 100.0, "gap_p99_s": 0.1, "cpu_s": 1.0, "ended_well": 16, "asked": 16, "put": 48, "shed": 0,
    "lost": 0, "failed": 0,
}  # fmt: skip
STREAM = {"p50_s": 0.01, "p99_s": 0.02, "most_s": 0.03, "first_token_s": 1.0}


def done(kind: str = "", name: str = "", **worse: Any) -> dict[str, Any]:
    """All as it should be, but for the rounds of one kind with replication."""
    runs: dict[str, Any] = {
        "lmdb": {"pairs": [ROUND], "tails": {"1_s": 0.1, "31_s": 0.2}}, "full": {"pairs": [ROUND | {"lost": 1}]},
        "redis": {"pairs": [ROUND], "slow": [ROUND | {"shed": 1}], "stopped": [ROUND | {"failed": 1}]},
    }  # fmt: skip
    for run, kinds in runs.items():
        for one, rounds in kinds.items():
            if one != "tails":
                more = worse if (run, one) == (kind, name) else {}
                kinds[one] = [{"on": on | more, "off": ROUND} for on in rounds * 3]
    runs["lmdb"]["corrupt"] = {
        "asked": 16, "same_answers": 16, "holdfast_pages_corrupt": 16, "holdfast_pages_loaded": 0
    } | (worse if name == "corrupt" else {})  # fmt: skip
    runs["restore"] = {
        "sessions": 8, "tokens": 3000, "pages": 744, "pages_loaded": 744, "alone": STREAM, "loading": STREAM,
        "computing": STREAM | {"most_s": 2.0},
    } | (worse if name == "restore" else {})  # fmt: skip
    return {replication.NAME: {"on": "a day", "runs": runs}}


@pytest.mark.parametrize(
    ("kind", "name", "worse", "claim"),
    [
        ("lmdb", "pairs", {"tokens_per_s": 97.0}, "lmdb costs"),
        ("redis", "pairs", {"gap_p99_s": 0.11}, "redis costs"),
        ("full", "pairs", {"ended_well": 15}, "is full"),
        ("redis", "slow", {"tokens_per_s": 50.0}, "is slow"),
        ("redis", "stopped", {"failed": 0}, "is stopped"),
        ("lmdb", "corrupt", {"same_answers": 15}, "damaged"),
        ("lmdb", "corrupt", {"holdfast_pages_loaded": 1}, "damaged"),
        ("", "restore", {"pages_loaded": 700}, "running stream"),
        ("", "restore", {"loading": STREAM | {"most_s": 1.5}}, "running stream"),
    ],
)
def test_what_is_worse_breaks_its_claim_and_no_other(kind, name, worse, claim):
    assert all(replication.verdicts(done()).values())

    (broken,) = [said for said, good in replication.verdicts(done(kind, name, **worse)).items() if not good]

    assert claim in broken


def test_what_two_rounds_without_it_differ_by_is_no_cost():
    """A machine that is that uneven cannot tell more."""
    uneven = done("lmdb", "pairs", tokens_per_s=95.0)
    for number, pair in enumerate(uneven[replication.NAME]["runs"]["lmdb"]["pairs"]):
        pair["off"] = ROUND | {"tokens_per_s": (100.0, 80.0, 100.0)[number]}

    assert all(replication.verdicts(uneven).values())


def test_its_words_have_every_store():
    said = "\n".join(replication.lines(done()))

    assert all(word in said for word in ("LMDB", "Redis", "full", "slow", "stopped", "partial tail", "computing"))
    assert replication.lines({}) == []
    assert replication.verdicts({}) == {}
