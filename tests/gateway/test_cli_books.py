"""`holdfast spend` and `journal`: what they print, and what they refuse."""

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
import structlog

from gateway import cli_common
from gateway.books.ledger.tables import connect, lock
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


def journal(data: str, *facts: dict) -> None:
    lines = [msgspec.json.encode({"seq": seq, "at": time.time()} | fact) for seq, fact in enumerate(facts, 1)]
    Path(data).mkdir(exist_ok=True)
    (Path(data) / "journal.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def ledger(data: str, spent: int) -> None:
    Path(data).mkdir(exist_ok=True)
    db = connect(Path(data))
    db.execute("INSERT INTO accounts VALUES (?, ?, ?, 50000000, ?, 7, 0)", (*PLACE, spent))
    db.close()


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


def request(at: float, user: str, model: str = "tiny", cost: int = 1_000_000, **more) -> dict:
    charges = [(PLACE, cost)]
    return {
        "at": at, "kind": "request.settled", "request_id": f"r{at}", "user": user, "model": model,
        "prompt_tokens": 1_000_000, "completion_tokens": 0, "charged_tokens": 1_000_000, "cost": cost,
        "charges": charges, **more,
    }  # fmt: skip


def test_spend_is_drawn_over_time(data: str, tmp_path: Path):
    """In the terminal and as SVG; names are text, never markup."""
    now = time.time()
    journal(
        data, *(request(now - 3600 * ago, user, cost=ago * 1_000_000) for ago, user in ((5, "[red]eve"), (1, "bob")))
    )

    drawn, _ = run("spend", "--plot", "--data", data)
    _, err = run("spend", "--svg", str(tmp_path / "spend.svg"), "--data", data)
    rows = json.loads(run("spend", "--plot", "--json", "--by", "day", "--since", "40d", "--data", data)[0])
    root = ElementTree.fromstring((tmp_path / "spend.svg").read_text())

    for part in ("[red]eve", "bob", "$5.00", "$1.00", "████"):
        assert part in drawn
    assert err == ""
    titles = [one.text for one in root.iter("{http://www.w3.org/2000/svg}title")]
    assert any("[red]eve: $5.00" in title for title in titles)
    assert sum(row["cost"] for row in rows) == 6_000_000
    assert {row["at"] % 86_400 for row in rows} == {0}


def test_several_journals_are_read(data: str, tmp_path: Path):
    """Such as those that were moved away."""
    journal(data, request(time.time(), "alice"))
    other = str(tmp_path / "other")
    journal(other, request(time.time(), "alice", cost=5))
    both = [argument for one in (data, other) for argument in ("--journal", f"{one}/journal.jsonl")]

    (row,) = json.loads(run("spend", *both, "--data", data, "--json")[0])

    assert (row["requests"], row["cost"]) == (2, 1_000_005)


@pytest.fixture
def prices(data: str, tmp_path: Path) -> str:
    """A configuration with other prices than those of the journal: two dollars for a million tokens."""
    file = tmp_path / "prices.yaml"
    file.write_text(f"""
data: {data}
upstreams: [{{url: 'http://127.0.0.1:1'}}]
prices: [{{model: tiny, input: 2, output: 2}}]
""")
    return str(file)


def test_prices_are_put_right(data: str, prices: str):
    """First it is said what would change; then the ledger is corrected, once, and is what the journal says."""
    journal(data, *(request(time.time(), "alice") for _ in range(3)), request(time.time(), "bob", "other"))
    ledger(data, 4_000_000)
    take_away_what_is_held(data)

    table, dry = run("journal", "replay", "--prices", prices)
    told = json.loads(run("journal", "replay", "--prices", prices, "--apply", "--json")[0])
    _, again = run("journal", "replay", "--prices", prices, "--apply")

    for part in ("tiny", "$3.00", "$6.00", "org:acme"):
        assert part in table
    assert "nothing was changed" in dry
    assert told == {
        "models": {"tiny": {"requests": 3, "was": 3_000_000, "now": 6_000_000}},
        "accounts": [{"scope": "org:acme", "unit": "micro-dollars", "window": "total", "difference": 3_000_000}],
        "corrected": True,
    }
    assert "nothing differs" in again
    assert "the ledger is what the journal says" in run("journal", "replay", "--check", "--data", data)[1]
    assert [row["cost"] for row in json.loads(run("spend", "--data", data, "--json")[0])] == [6_000_000, 1_000_000]


def test_a_repricing_that_waits_for_its_gateway_may_be_given_again(data: str, prices: str, monkeypatch):
    """Its requests grow meanwhile, and its prices are the same; other prices wait until it is made."""
    monkeypatch.setattr(cli_common, "WAIT_S", 0.1)
    first = request(time.time(), "alice")
    journal(data, first)
    ledger(data, 3_000_000)
    take_away_what_is_held(data)
    apply = "journal", "replay", "--prices", prices, "--apply"
    runs = lock(Path(data))
    run(*apply, code=1)
    journal(data, first, request(time.time(), "alice"))
    waits = run(*apply, code=1)[1]
    Path(prices).write_text(Path(prices).read_text().replace("input: 2", "input: 3"))
    other = run(*apply)[1]
    os.close(runs)

    assert "has not done it yet; it will, once" in waits
    assert "somebody else has just done so: look again" in other


def test_prices_of_a_span_are_put_right(data: str, prices: str):
    """And nothing before it."""
    journal(data, *(request(time.time() - ago, "alice") for ago in (7000, 5000, 10)))

    told = json.loads(run("journal", "replay", "--prices", prices, "--since", "1h", "--json")[0])

    assert (told["models"]["tiny"]["requests"], told["corrected"]) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--apply",), 2, "is for --prices"),
        (("--since", "1h"), 2, "is for --prices"),
        (("--prices", "PRICES", "--check"), 2, "is not for --prices"),
        (("--prices", "PRICES"), 1, "there is no journal"),
    ],
)
def test_what_cannot_be_repriced_is_refused(prices: str, arguments: tuple[str, ...], code: int, says: str):
    """In one sentence."""
    _, err = run("journal", "replay", *(prices if one == "PRICES" else one for one in arguments), code=code)

    assert says in " ".join(err.replace("│", " ").split())


def test_a_ledger_that_is_gone_is_not_corrected(data: str, prices: str):
    """There is none to be made: it would differ from the journal in all it says."""
    journal(data, request(time.time(), "alice"))

    assert "there is no ledger" in run("journal", "replay", "--prices", prices, "--apply", code=1)[1]


def take_away_what_is_held(data: str) -> None:
    db = connect(Path(data))
    db.execute("UPDATE accounts SET held = 0")
    db.close()
