"""`holdfast budgets`, `spend` and `journal`: what they print, and what they refuse."""

import json
import time
from pathlib import Path

import msgspec
import pytest

from gateway.books.ledger.tables import connect
from tests.gateway.test_cli import run

PLACE = ("org:acme", "micro-dollars", "total")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def journal(data: str, *facts: dict) -> None:
    lines = [msgspec.json.encode({"seq": seq, "at": time.time(), **fact}) for seq, fact in enumerate(facts, 1)]
    Path(data).mkdir(exist_ok=True)
    (Path(data) / "journal.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def ledger(data: str, spent: int) -> None:
    Path(data).mkdir(exist_ok=True)
    db = connect(Path(data))
    db.execute("INSERT INTO accounts VALUES (?, ?, ?, 50000000, ?, 7, 0)", (*PLACE, spent))
    db.close()


def test_budgets_are_set_listed_and_removed(data: str):
    """With what is spent of them, as a table and as JSON."""
    ledger(data, 12_500_000)
    run("budgets", "set", "org:acme", "50 USD", "10M tokens/day", "--data", data)
    run("budgets", "set", "org:acme", "20k output tokens", "--each", "session", "--data", data)

    table, _ = run("budgets", "list", "--data", data)
    rows = json.loads(run("budgets", "list", "--data", data, "--json")[0])

    for part in (
        "org:acme",
        "$50.00",
        "$12.50",
        "25%",
        "█████",
        "10,000,000",
        "each session of org:acme",
        "20,000 output",
    ):
        assert part in table
    money = next(row for row in rows if row["unit"] == "micro-dollars")
    assert (money["amount"], money["spent"], money["held"], money["free"]) == (50_000_000, 12_500_000, 7, 37_499_993)
    assert len(rows) == 3

    run("budgets", "remove", "org:acme", "USD/total", "--data", data)
    _, err = run("budgets", "remove", "org:acme", "USD/total", "--data", data, code=1)
    assert "no stored limit" in err
    assert len(json.loads(run("budgets", "list", "--data", data, "--json")[0])) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("set", "acme", "5 USD"), "org:NAME"),
        (("set", "session:x", "5 USD"), "org:NAME"),
        (("set", "org:acme", "5 beans"), "unknown unit"),
        (("set", "org:acme", "5 USD", "--each", "week"), "session, agent, turn"),
        (("remove", "org:acme", "beans/day"), "unit and a window"),
        (("remove", "org:acme", "USD/year"), "unit and a window"),
    ],
)
def test_what_is_no_budget_is_refused(data: str, arguments: tuple[str, ...], says: str):
    """In one sentence that says what to write."""
    out, err = run("budgets", *arguments, "--data", data, code=2)

    assert out == ""
    assert says in " ".join(err.replace("│", " ").split())


def test_spend_is_shown_by_whom(data: str):
    """As a table with bars and as JSON; of the time that is asked for."""
    fact = {"kind": "request.settled", "request_id": "r", "user": "[red]eve", "model": "tiny", "prompt_tokens": 1_200}
    journal(data, fact | {"completion_tokens": 5, "cost": 2_500_000}, fact | {"user": "bob", "cost": 1_000_000})

    table, _ = run("spend", "--data", data)
    rows = json.loads(run("spend", "--by", "model", "--since", "7d", "--data", data, "--json")[0])

    assert "[red]eve" in table
    assert "$2.50" in table
    assert table.index("eve") < table.index("bob")
    assert rows == [
        {"name": "tiny", "requests": 2, "input_tokens": 2_400, "cached_tokens": 0, "output_tokens": 5,
         "reasoning_tokens": 0, "cost": 3_500_000}
    ]  # fmt: skip


def test_what_was_charged_for_the_dead_is_mentioned(data: str):
    """It is on no request, so it is in no row."""
    journal(data, {"kind": "ledger.recovered", "request_id": "recovery-1", "charges": [(PLACE, 5)]})

    assert "journal replay" in run("spend", "--data", data)[1]


def test_a_limit_of_nobody_is_mentioned(data: str):
    """A slip in a name would bind nobody, and nobody would know."""
    run("keys", "create", "--user", "alice", "--org", "100%", "--data", data)

    assert "no key is under org:acme" in run("budgets", "set", "org:acme", "5 USD", "--data", data)[1]
    assert "no key" not in run("budgets", "set", "org:100%", "5 USD", "--data", data)[1]
    assert "no key" not in run("budgets", "set", "user:100%/alice", "5 USD", "--data", data)[1]
    assert "no key" in run("budgets", "set", "user:alice", "5 USD", "--data", data)[1]


def test_a_ledger_that_cannot_be_read_is_shown_as_an_empty_one(data: str):
    """Such as one that an older gateway is at work on."""
    run("keys", "create", "--user", "alice", "--tokens", "7", "--data", data)
    (Path(data) / "ledger.sqlite3").write_bytes(b"x" * 8192)

    (row,) = json.loads(run("keys", "list", "--data", data, "--json")[0])
    assert row["budgets"][0]["spent"] == 0


def test_nothing_spent_is_said(data: str):
    """An empty list for machines."""
    assert run("spend", "--data", data) == ("", "nothing was spent within 24h\n")
    assert run("spend", "--data", data, "--json") == ("[]\n", "")


@pytest.mark.parametrize("arguments", [("--by", "planet"), ("--since", "yesterday"), ("--since", "-1h")])
def test_what_spend_does_not_know_is_refused(data: str, arguments: tuple[str, ...]):
    """With what to write."""
    _, err = run("spend", *arguments, "--data", data, code=2)

    assert "write" in err


def test_a_journal_that_is_the_ledger(data: str):
    """Account by account, to the micro-dollar."""
    ledger(data, 30)
    journal(data, *({"kind": "request.settled", "charges": [(PLACE, amount)]} for amount in (10, 20)))

    _, err = run("journal", "replay", "--check", "--data", data)
    told = json.loads(run("journal", "replay", "--check", "--data", data, "--json")[0])

    assert "the ledger is what the journal says" in err
    assert (told["facts"], told["accounts"], told["facts_lost"], told["differences"]) == (2, 1, 0, [])
    (charged,) = json.loads(run("journal", "replay", "--data", data, "--json")[0])["charged"]
    assert charged == {"scope": "org:acme", "unit": "micro-dollars", "window": "total", "charged": 30}


def test_a_journal_that_is_not_the_ledger(data: str, monkeypatch: pytest.MonkeyPatch):
    """It says where, and by how much."""
    monkeypatch.setattr("gateway.cli_books.LOOK_S", 0.0)
    ledger(data, 31)
    journal(data, {"kind": "request.settled", "charges": [(PLACE, 30)]}, {"kind": "journal.gap", "lost": 2})

    out, err = run("journal", "replay", "--check", "--data", data, code=1)

    assert out == "org:acme micro-dollars total: the journal says 30, the ledger 31\n"
    assert "lost 2 facts" in err


def test_a_damaged_journal_is_said_to_be(data: str):
    """In a line, with the place."""
    journal(data, {"kind": "request.settled"})
    with (Path(data) / "journal.jsonl").open("ab") as file:
        file.write(b"garbage\n")

    _, err = run("journal", "replay", "--data", data, code=1)

    assert "damaged in the line that begins at byte" in err
