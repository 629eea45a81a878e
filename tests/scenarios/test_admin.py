"""The admin port of a real gateway: budgets changed, topped up and reset while streams run; nothing for strangers."""

import asyncio
import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from hashlib import sha256
from typing import Any

import pytest

from gateway.books.corrections import encoded, reset
from gateway.books.keys import Keys
from gateway.books.ledger.contract import Place
from tests.processes import HOLDFAST, ROOT, id_of, until
from tests.processes import ForkedGateway as Gateway
from tests.scenarios.asking import ask, chat, error, order, prompt_tokens, request_id, stop_reasons

PRICES = [{"model": "stub", "input": 2, "output": 6}]  # micro-dollars for one


def admin(
    gateway: Gateway,
    method: str,
    path: str,
    body: Any = None,
    status: int = 200,
    raw: bytes | None = None,
    **headers: str,
) -> Any:
    """Ask the admin port; its JSON, and its headers under «headers» of an error."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    data = raw if body is None else json.dumps(body).encode()
    if data is not None:
        given.setdefault("content-type", "application/json")
    request = urllib.request.Request(gateway.admin_url + path, data, given, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == status
            assert answer.headers["cache-control"] == "no-store"
            return json.load(answer)
    except urllib.error.HTTPError as refused:
        found: dict[str, Any] = json.load(refused)["error"] | {"headers": dict(refused.headers)}
        code = refused.code
    assert code == status, found
    return found


@pytest.fixture(scope="module")
def gateway(stubs, tokenizer, tmp_path_factory):
    """One that no admin key was set for; each test has orgs of its own."""
    folder = tmp_path_factory.mktemp("admin")
    with Gateway(folder, [stub.url for stub in stubs], tokenizer=tokenizer, prices=PRICES) as made:
        yield made
        made.cli("journal", "replay", "--check")  # whatever the tests did
        assert made.stop() == 0
        assert made.faults() == []


def make_key(gateway: Gateway, org: str, *limits: str) -> str:
    """A key by the admin port; known to the log's readers."""
    made = admin(gateway, "POST", "/admin/keys", {"user": "alice", "org": org, "limits": list(limits)})
    gateway.secrets.append(made["key"])
    return made["key"]


def stands(gateway: Gateway, scope: str, unit: str = "tokens") -> dict[str, Any]:
    """How one limit stands."""
    (line,) = [one for one in admin(gateway, "GET", f"/admin/budgets/{scope}")["limits"] if one["unit"] == unit]
    return line


# ---------------------------------------------------------------- running streams


def delivered(gateway: Gateway) -> list[int]:
    """How many tokens each of those that run and have brought any has brought."""
    holds = admin(gateway, "GET", "/admin/holds")["holds"]
    return [one["used"]["output"] for one in holds if one["used"]["output"]]


async def both(gateway: Gateway, org: str, meanwhile: Any) -> list[Any]:
    """Two streams of 600 tokens on a budget for one and a half, and something that is done while they run."""
    bodies = [chat(f"{n} " + order(tokens=600, per_chunk=8, tokens_per_s=400)) for n in range(2)]
    budget = sum(map(prompt_tokens, bodies)) + 900
    await asyncio.to_thread(admin, gateway, "PUT", f"/admin/budgets/org:{org}", {"limits": [f"{budget}/day"]})
    key = await asyncio.to_thread(make_key, gateway, org)
    streams = [asyncio.create_task(ask(gateway, key, body)) for body in bodies]
    await asyncio.to_thread(until, lambda: len(delivered(gateway)) == 2)
    await asyncio.to_thread(meanwhile, budget)
    return [*await asyncio.gather(*streams), budget]


async def test_a_stream_that_would_be_cut_goes_on_after_a_top_up(gateway):
    """Without one, two streams share the 900 tokens; with one, each comes to its end."""
    *cut, _ = await both(gateway, "cut", lambda budget: None)

    def top_up(budget: int) -> None:
        admin(gateway, "POST", "/admin/budgets/org:topped/top-up", {"amount": "300/day", "id": "x"})
        admin(gateway, "POST", "/admin/budgets/org:topped/top-up", {"amount": "300/day", "id": "x"})

    *whole, budget = await both(gateway, "topped", top_up)

    assert sum(len(seen.ids) for seen in cut) == 900
    assert "budget_exceeded" in stop_reasons(cut[0]) + stop_reasons(cut[1])
    assert [len(seen.ids) for seen in whole] == [600, 600]
    line = until(lambda: (one := stands(gateway, "org:topped"))["held"] == 0 and one)
    assert (line["amount"], line["topped_up"], line["spent"], line["free"]) == (budget + 300, 300, budget + 300, 0)


async def test_a_reset_gives_running_streams_what_was_spent_before(gateway):
    """What they hold stays held, and what they were given before is charged once they end."""

    def reset(budget: int) -> None:
        done = admin(gateway, "POST", "/admin/budgets/org:reset/reset", {"kind": "tokens/day", "id": "r"})
        assert (done["new"], done["given_back"]) == (True, 0)  # nothing is settled yet

    *_, budget = await both(gateway, "reset", reset)
    spent = until(lambda: (one := stands(gateway, "org:reset"))["held"] == 0 and one)["spent"]
    done = admin(gateway, "POST", "/admin/budgets/org:reset/reset", {"kind": "tokens/day", "id": "r2"})
    again = admin(gateway, "POST", "/admin/budgets/org:reset/reset", {"kind": "tokens/day", "id": "r2"})
    for path in ("org:reset", "org:other"):
        other = {"kind": "tokens/day" if path == "org:other" else "USD/day", "id": "r2"}
        refused = admin(gateway, "POST", f"/admin/budgets/{path}/reset", other, status=409)
        assert (refused["param"], "used for another order" in refused["message"]) == ("id", True)

    assert (spent, done["given_back"], done["new"]) == (budget, budget, True)
    assert (again["given_back"], again["new"]) == (0, False)
    assert stands(gateway, "org:reset")["spent"] == 0
    (fact,) = until(lambda: [one for one in gateway.journal() if one.get("request_id") == "correction-r2/0"])
    assert (fact["kind"], fact["charges"][0][1]) == ("ledger.corrected", -budget)


async def test_the_command_line_reaches_a_running_gateway(gateway):
    """A reset and a correction of prices, once each; and what runs is shown."""
    key = make_key(gateway, "cli")
    admin(gateway, "PUT", "/admin/budgets/org:cli", {"limits": ["1 USD/month"]})
    seen = await ask(gateway, key, chat(order(tokens=40)))
    cost = gateway.settled(request_id(seen))["cost"]
    for _ in range(2):
        await asyncio.to_thread(gateway.cli, "budgets", "reset", "org:cli", "USD/month", "--id", "cli-1")
    assert stands(gateway, "org:cli", "micro-dollars")["spent"] == 0
    second = await ask(gateway, key, chat(order(tokens=40)))
    gateway.settled(request_id(second))

    other = gateway.folder / "dearer.yaml"
    double = [{"model": "stub", "input": 4, "output": 12}]
    other.write_text(json.dumps(json.loads(gateway.config_file.read_text()) | {"prices": double}))
    told = json.loads(gateway.cli("journal", "replay", "--prices", str(other), "--apply", "--json"))
    again = json.loads(gateway.cli("journal", "replay", "--prices", str(other), "--apply", "--json"))

    assert (told["corrected"], again["corrected"], again["accounts"]) == (True, False, [])
    (mine,) = [one for one in told["accounts"] if one["scope"] == "org:cli"]
    assert mine["difference"] == cost  # of the second request alone: the first was forgiven
    assert stands(gateway, "org:cli", "micro-dollars")["spent"] == 2 * cost


async def test_an_order_that_a_gateway_did_not_live_to_carry_out_is_carried_out_by_the_next(stubs, start_gateway):
    """Once, whatever is charged in between; and the next but one does nothing."""
    gateway = start_gateway([stubs[0].url])
    key = gateway.key("alice", 10_000)
    await ask(gateway, key, chat(order(tokens=20)))
    spent = gateway.paid(key).spent
    gateway.kill()
    keys = Keys(gateway.data / "keys.db")
    keys.order("left", encoded(reset(Place(f"key:{id_of(key)}", "tokens", "total"))))
    keys.close()

    for expected in (0, spent):
        with Gateway(gateway.folder, [stubs[0].url]) as again:
            until(lambda spent=expected: again.balance(key).spent == spent)
            assert again.cli("budgets", "reset", f"key:{id_of(key)}", "tokens", "--id", "left") == ""
            await ask(again, key, chat(order(tokens=20)))
            assert again.paid(key).spent == expected + spent
            assert again.stop() == 0
            assert again.faults() == []
    gateway.cli("journal", "replay", "--check")


async def test_what_runs_is_shown(gateway):
    """Who, since when, what is held of which account, and what was delivered; by the port and on the command line."""
    key = make_key(gateway, "holds", "5000/day")
    body, looked = chat(order(tokens=3000, tokens_per_s=200)), asyncio.Event()
    stream = asyncio.create_task(ask(gateway, key, body, until=lambda seen: looked.is_set(), x_session_id="s1"))
    await asyncio.to_thread(until, lambda: delivered(gateway))

    told = await asyncio.to_thread(admin, gateway, "GET", "/admin/holds?limit=5")
    table = await asyncio.to_thread(
        subprocess.run, [HOLDFAST, "holds", "--config", gateway.config_file], cwd=ROOT, capture_output=True, text=True
    )
    looked.set()
    seen = await stream

    (one,) = told["holds"]
    assert told["total"] == 1
    assert (one["request_id"], one["key_id"], one["user"], one["model"], one["session"]) == (
        request_id(seen), id_of(key), "alice", "stub", "s1"
    )  # fmt: skip
    assert one["used"]["input"] == prompt_tokens(body)
    assert 0 < one["used"]["output"] <= one["leased_tokens"]
    assert one["held"] == [
        {"scope": f"key:{id_of(key)}", "unit": "tokens", "window": time.strftime("%Y-%m-%d", time.gmtime()),
         "held": one["held"][0]["held"]}
    ]  # fmt: skip
    assert one["held"][0]["held"] >= one["used"]["input"] + one["used"]["output"]
    assert request_id(seen) in table.stdout
    until(lambda: admin(gateway, "GET", "/admin/holds")["total"] == 0)


# ---------------------------------------------------------------- limits, keys, spend


async def test_limits_are_set_read_and_removed(gateway):
    """All of a scope's at once; the next request knows."""
    key = make_key(gateway, "put")
    put = admin(gateway, "PUT", "/admin/budgets/org:put", {"limits": ["1 USD/month", "5/day"], "each": {"turn": ["9"]}})
    refused = await ask(gateway, key, chat(order(tokens=3)))
    admin(gateway, "PUT", "/admin/budgets/org:put", {"limits": ["1 USD/month"]})
    allowed = await ask(gateway, key, chat(order(tokens=3)))

    assert [(line["unit"], line["window"], line["amount"]) for line in put["limits"]] == [
        ("micro-dollars", "month", 1_000_000), ("tokens", "day", 5)
    ]  # fmt: skip
    assert put["each"] == {"turn": [{"unit": "tokens", "window": "total", "amount": 9}]}
    assert (refused.status, error(refused)["code"], allowed.status) == (402, "budget_exceeded", 200)
    found = admin(gateway, "GET", "/admin/budgets/org:put")
    assert (len(found["limits"]), found["each"]) == (1, {})
    assert admin(gateway, "DELETE", "/admin/budgets/org:put?kind=USD/month")["removed"]
    admin(gateway, "DELETE", "/admin/budgets/org:put", status=404)
    admin(gateway, "GET", "/admin/budgets/org:put", status=404)


@pytest.mark.parametrize(
    "name", ["team:slash/reset", "team:slashed%2Freset", "team:slash/a%252Fb", "user:slash/top-up"]
)
def test_scopes_are_written_in_paths_as_on_the_command_line(gateway, name):
    """A slash between an org and a team needs no escape; names that are those of actions are names."""
    admin(gateway, "PUT", f"/admin/budgets/{name}", {"limits": ["10/day"]})
    done = admin(gateway, "POST", f"/admin/budgets/{name}/top-up", {"amount": "5/day", "id": name})

    scope = name.replace("slashed%2F", "slashed/").replace("%252F", "%2F")
    assert done["scope"] == scope
    assert admin(gateway, "GET", f"/admin/budgets/{name}")["limits"][0]["amount"] == 15
    assert scope in gateway.cli("budgets", "list")
    assert admin(gateway, "DELETE", f"/admin/budgets/{name}")["removed"]


def test_budgets_are_listed_in_pages(gateway):
    """Each scope once, in the order of names."""
    for number in range(5):
        admin(gateway, "PUT", f"/admin/budgets/org:page{number}", {"limits": ["10/day"], "each": {"session": ["3"]}})
    seen, after = [], "org:page"
    while after is not None:
        page = admin(gateway, "GET", f"/admin/budgets?limit=2&after={after}")
        seen += [one["scope"] for one in page["data"]]
        after = page["next"]

    assert seen[:5] == [f"org:page{number}" for number in range(5)]
    assert len(seen) == len(set(seen))
    assert len(page["data"]) <= 2


async def test_keys_are_made_shown_and_revoked(gateway):
    """The secret is told once."""
    made = admin(
        gateway, "POST", "/admin/keys", {"user": "carol", "team": "search", "org": "keys", "limits": ["9k/day"]}
    )
    gateway.secrets.append(made["key"])
    first = await ask(gateway, made["key"], chat(order(tokens=3)))
    listed = admin(gateway, "GET", "/admin/keys?limit=1000")
    revoked = admin(gateway, "DELETE", f"/admin/keys/{made['key_id']}")
    second = await ask(gateway, made["key"], chat(order(tokens=3)))

    (one,) = [row for row in listed["data"] if row["key_id"] == made["key_id"]]
    assert made["key"] not in json.dumps(listed)
    assert (one["user"], one["team"], one["budgets"][0]["amount"], one["state"]) == ("carol", "search", 9_000, "active")
    assert (first.status, second.status, revoked["revoked"]) == (200, 401, True)
    admin(gateway, "DELETE", f"/admin/keys/{made['key_id']}", status=404)


async def test_spend_and_prices_are_told(gateway):
    """By whom it was asked for."""
    key = make_key(gateway, "spend")
    seen = await ask(gateway, key, chat(order(tokens=7)))
    gateway.settled(request_id(seen))

    told = admin(gateway, "GET", "/admin/spend?by=org&since=1h")

    (mine,) = [row for row in told["data"] if row["name"] == "spend"]
    assert (mine["requests"], mine["output_tokens"]) == (1, 7)
    (price,) = admin(gateway, "GET", "/admin/prices")["data"]
    assert (price["model"], price["input"], price["output"]) == ("stub", 2_000_000, 6_000_000)


# ---------------------------------------------------------------- what is refused

JSON = "/admin/budgets/org:bad"
TOO_LARGE = b'{"limits": ["' + b"1" * 70_000 + b'"]}'


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("PUT", JSON, {"limit": []}, 400, "limit"),
        ("PUT", JSON, {"limits": ["5 beans"]}, 400, "limits[0]"),
        ("PUT", JSON, {"limits": ["5/day", 7]}, 400, "limits[1]"),
        ("PUT", JSON, {"limits": ["5/day", "6/day"]}, 400, "limits"),
        ("PUT", JSON, {"limits": ["1"] * 40}, 400, "limits"),
        ("PUT", JSON, {"each": {"week": ["5"]}}, 400, "each"),
        ("PUT", JSON, {"each": {"turn": ["x"]}}, 400, "each.turn[0]"),
        ("PUT", JSON, [], 400, None),
        ("PUT", "/admin/budgets/planet:earth", {"limits": []}, 400, "scope"),
        ("POST", f"{JSON}/reset", {}, 400, "kind"),
        ("POST", f"{JSON}/reset", {"kind": "beans"}, 400, "kind"),
        ("POST", f"{JSON}/reset", {"kind": "USD", "id": ""}, 400, "id"),
        ("POST", f"{JSON}/top-up", {"amount": "5"}, 400, "id"),
        ("POST", f"{JSON}/top-up", {"amount": "5 USD", "id": "nolimit"}, 404, "amount"),
        ("POST", f"{JSON}/explode", {}, 400, "scope"),
        ("POST", JSON, {}, 405, None),
        ("POST", "/admin/keys", {"user": ""}, 400, "user"),
        ("POST", "/admin/keys", {"user": "a", "tokens": 5}, 400, "tokens"),
        ("DELETE", "/admin/keys/key_unknown", None, 404, None),
        ("GET", "/admin/budgets?limit=0", None, 400, "limit"),
        ("GET", "/admin/budgets?page=2", None, 400, "page"),
        ("GET", "/admin/spend?by=planet", None, 400, "by"),
        ("GET", "/admin/spend?since=yesterday", None, 400, "since"),
        ("POST", "/admin/replicas/nobody/undrain", {}, 404, None),
        ("POST", "/admin/replicas/nobody/drain", {}, 404, None),
        ("GET", "/admin/replicas/nobody/drain", None, 404, None),
        ("GET", "/admin/replicas/nobody/drain?limit=1", None, 400, "limit"),
        ("POST", "/admin/replicas/nobody/drain", {"at_once": 0}, 400, "at_once"),
        ("POST", "/admin/replicas/nobody/drain", {"at_once": 65}, 400, "at_once"),
        ("POST", "/admin/replicas/nobody/drain", {"force": True}, 400, "force"),
        ("PUT", "/admin/replicas/nobody/drain", {}, 405, None),
        ("POST", "/admin/replicas/nobody/undrain", {"force": True}, 400, "force"),
        ("GET", "/admin/replicas/nobody/undrain", None, 405, None),
        ("POST", "/admin/replicas/nobody", {}, 404, None),
        ("DELETE", "/admin/prices", None, 405, None),
        ("GET", "/admin/nothing", None, 404, None),
        ("GET", "/admin/", None, 404, None),
    ],
)
def test_bad_requests_are_refused_by_name(gateway, method, path, body, status, param):
    """In OpenAI's shape; nothing has changed."""
    refused = admin(gateway, method, path, body, status)

    assert set(refused) == {"message", "type", "param", "code", "headers"}
    assert refused["param"] == param
    if status == 405:
        assert refused["headers"]["allow"]
    admin(gateway, "GET", JSON, status=404)


@pytest.mark.parametrize(
    ("raw", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"\xff", {}, 400),
        (TOO_LARGE, {}, 413),
        (b"{}", {"content_type": "text/plain"}, 415),
        (b"{}", {"content_type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {"origin": "http://evil.example"}, 403),
        (b"{}", {"origin": "null"}, 403),
        (b"{}", {"host": "evil.example"}, 403),
    ],
)
def test_what_a_page_in_a_browser_could_send_changes_nothing(gateway, raw, headers, status):
    """Another content type, another origin, another name for this machine; nor does garbage."""
    before = admin(gateway, "GET", "/admin/budgets")

    refused = admin(gateway, "PUT", JSON, status=status, raw=raw, **headers)

    assert refused["message"]
    assert admin(gateway, "GET", "/admin/budgets") == before
    assert admin(gateway, "GET", JSON, status=404)["code"] == "not_found"


def test_a_page_cannot_read_either(gateway):
    """Its own name may have been made to mean this machine."""
    elsewhere = admin(gateway, "GET", "/admin/keys", status=403, host="evil.example:80")
    other_page = admin(gateway, "GET", "/admin/keys", status=403, origin="http://localhost:3000")

    for refused in (elsewhere, other_page):
        assert set(refused) == {"message", "type", "param", "code", "headers"}
        assert "access-control-allow-origin" not in {name.lower() for name in refused["headers"]}


def test_an_admin_key_is_asked_for_where_there_is_one(stubs, start_gateway):
    """For reading, too; whatever the host is called then."""
    secret = "hf-" + "s" * 43
    gateway = start_gateway([stubs[0].url], admin_key_sha256=sha256(secret.encode()).hexdigest())

    for method, path in (("GET", "/admin/budgets"), ("GET", "/admin/keys"), ("PUT", JSON)):
        assert admin(gateway, method, path, status=401)["code"] == "invalid_api_key"
    admin(gateway, "GET", "/admin/budgets", authorization=f"Bearer {secret}", host="holdfast.internal")
    admin(gateway, "GET", "/admin/budgets", status=403, authorization=f"Bearer {secret}", origin="http://x")
    assert secret not in gateway.log()


def test_a_damaged_journal_is_told(stubs, start_gateway):
    """In a line; the gateway goes on."""
    gateway = start_gateway([stubs[0].url])
    with (gateway.data / "journal.jsonl").open("ab") as file:
        file.write(b"garbage\n")

    assert "damaged" in admin(gateway, "GET", "/admin/spend", status=503)["message"]
    assert gateway.get("/readyz")[0] == 200


def test_what_the_documentation_says_works_when_it_is_pasted(stubs, start_gateway):
    """Every line of it, in its order, on a gateway of one's own."""
    gateway = start_gateway([stubs[0].url], prices=PRICES)
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/admin.md").read_text("utf-8"), re.DOTALL)
    script = 'set -euo pipefail\nHOLDFAST_ADMIN_KEY=\ncurl() { command curl --fail-with-body "$@"; echo; }\n'
    script += "".join(blocks).replace("http://127.0.0.1:8081", gateway.admin_url)

    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)

    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    gateway.secrets += [one["key"] for one in told if "key" in one]
    assert len(told) == len(re.findall(r"\bcurl -s", script))
