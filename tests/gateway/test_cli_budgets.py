"""`holdfast budgets` and `holds`: what they print, and what they refuse; without a gateway (scenarios have one)."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from gateway.books.ledger.tables import connect
from tests.gateway.test_cli import run

PLACE = ("org:acme", "micro-dollars", "total")


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Commands that correct the books log to what stands for their standard error here."""
    yield
    structlog.reset_defaults()
    logging.basicConfig(handlers=[], force=True)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


def ledger(data: str, spent: int, held: int = 7, at: tuple[str, ...] = PLACE) -> None:
    Path(data).mkdir(exist_ok=True)
    db = connect(Path(data))
    db.execute("INSERT INTO accounts VALUES (?, ?, ?, 50000000, ?, ?, ?)", (*at, spent, held, time.time()))
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


def test_a_limit_of_nobody_is_mentioned(data: str):
    """A slip in a name would bind nobody, and nobody would know."""
    run("keys", "create", "--user", "alice", "--org", "100%", "--data", data)

    assert "no key is under org:acme" in run("budgets", "set", "org:acme", "5 USD", "--data", data)[1]
    assert "no key" not in run("budgets", "set", "org:100%", "5 USD", "--data", data)[1]
    assert "no key" not in run("budgets", "set", "user:100%/alice", "5 USD", "--data", data)[1]
    assert "no key" in run("budgets", "set", "user:alice", "5 USD", "--data", data)[1]


def row_of(data: str, unit: str = "micro-dollars") -> dict:
    (row,) = [one for one in json.loads(run("budgets", "list", "--data", data, "--json")[0]) if one["unit"] == unit]
    return row


def test_a_budget_is_topped_up_once_for_an_id(data: str):
    """For its present window; the list shows how much of it that is."""
    run("budgets", "set", "org:acme", "50 USD/month", "10k/day", "--data", data)

    one = json.loads(run("budgets", "top-up", "org:acme", "5 USD/month", "--id", "x", "--data", data, "--json")[0])
    _, err = run("budgets", "top-up", "org:acme", "5 USD/month", "--id", "x", "--data", data)
    _, other = run("budgets", "top-up", "org:acme", "6 USD/month", "--id", "x", "--data", data, code=1)
    table, _ = run("budgets", "list", "--data", data)

    assert (one["amount"], one["new"], one["window_id"]) == (5_000_000, True, time.strftime("%Y-%m", time.gmtime()))
    assert "added before" in err
    assert "another id" in other
    assert "$55.00 (+$5.00)" in table
    assert (row_of(data)["amount"], row_of(data)["topped_up"], row_of(data)["free"]) == (
        55_000_000,
        5_000_000,
        55_000_000,
    )
    assert row_of(data, "tokens")["topped_up"] == 0


def test_a_budget_is_reset_once_for_an_id(data: str):
    """The journal tells of it, and is what the ledger says; what a dead gateway had held is charged first."""
    ledger(data, 0)
    run("budgets", "set", "org:acme", "50 USD", "--data", data)
    run("budgets", "reset", "org:acme", "USD", "--id", "begin", "--data", data)  # and so the journal begins

    ledger(data, 5, 7, ("user:bob", "tokens", "total"))
    _, err = run("budgets", "reset", "user:bob", "tokens", "--id", "x", "--data", data)
    _, again = run("budgets", "reset", "user:bob", "tokens", "--id", "x", "--data", data)
    _, other = run("budgets", "reset", "user:eve", "tokens", "--id", "x", "--data", data, code=1)
    facts = [json.loads(line) for line in (Path(data) / "journal.jsonl").read_text().splitlines()]

    assert "user:bob: tokens of total reset" in err
    assert "reset under the id x before" in again
    assert "the id 'x' was used for another order" in other
    assert [(fact["kind"], fact["charges"][0][1]) for fact in facts] == [
        ("ledger.recovered", 7), ("ledger.corrected", -7), ("ledger.recovered", 7), ("ledger.corrected", -12),
    ]  # fmt: skip
    assert row_of(data)["spent"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("reset", "acme", "USD"), 2, "org:NAME"),
        (("reset", "org:acme", "beans"), 2, "unit and a window"),
        (("reset", "org:acme", "USD", "--id", "a\nb"), 2, "printable"),
        (("reset", "org:acme", "USD"), 1, "there is no ledger"),
        (("top-up", "org:acme", "5 beans"), 2, "unknown unit"),
        (("top-up", "org:acme", "5 USD", "--id", ""), 2, "printable"),
        (("top-up", "org:acme", "5 USD"), 1, "has no limit"),
    ],
)
def test_what_cannot_be_reset_or_topped_up_is_refused(data: str, arguments: tuple[str, ...], code: int, says: str):
    """In one sentence that says what to write."""
    out, err = run("budgets", *arguments, "--data", data, code=code)

    assert out == ""
    assert says in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("admin", "code", "says"),
    [("http://127.0.0.1:1", 1, "no gateway answers"), ("file:///etc/passwd", 2, "write a URL")],
)
def test_holds_of_no_gateway(admin: str, code: int, says: str):
    """One line."""
    assert says in run("holds", "--admin", admin, code=code)[1]
