"""API keys: hashed at rest, revoked everywhere, never falling open."""

import hashlib
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.books import keys as module
from gateway.books.keys import Keys, News
from gateway.books.tenants import OPEN, RECORD
from gateway.config import DeclaredBudget, DeclaredKey
from gateway.config_times import TurnTimes
from guards.budget import Limit, Line, Unit, Window
from guards.burn import Plan
from guards.refusal import Reason, Refused
from guards.scope import each_of
from guards.timeouts import UNSAID, Times

ROOT = Path(__file__).parents[3]


def declared(secret: str, user: str = "carol") -> DeclaredKey:
    return DeclaredKey.model_validate({"user": user, "sha256": hashlib.sha256(secret.encode()).hexdigest()})


def refusal(keys: Keys, secret: str | None) -> Refused:
    with pytest.raises(Refused) as caught:
        keys.tenant(secret)
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "keys.db"


def test_created_key_is_its_tenant(path: Path):
    """A new key stands for its user, org and budget, also for the next process."""
    secret, tenant = Keys(path).create("alice", "acme", [Limit(100, Window.DAY)])

    assert re.fullmatch(r"hf-[A-Za-z0-9_-]{43}", secret)
    assert Keys(path).tenant(secret) == tenant
    assert (tenant.user, tenant.org, tenant.own, tenant.source) == ("alice", "acme", (Limit(100, Window.DAY),), "store")
    assert tenant.key_id == "key_" + hashlib.sha256(secret.encode()).hexdigest()[:12]


ORG, TEAM, USER, KEY = Limit(10_000), Limit(2_000, Window.DAY), Limit(3_000, Window.DAY, Unit.MONEY), Limit(100)


def test_a_key_is_under_the_limits_of_all_its_scopes(path: Path):
    """Its org's, its team's, its user's and its own, the widest first; not those of a stranger of the same name."""
    keys = Keys(path)
    secret, made = keys.create("alice", "acme", [KEY], team="search")
    for at, limit in (("org:acme", ORG), ("team:acme/search", TEAM), ("user:acme/alice", USER), ("user:alice", KEY)):
        keys.set_limit(at, limit)

    lines = keys.tenant(secret).lines

    own = f"key:{made.key_id}"
    assert lines == (("org:acme", ORG), ("team:acme/search", TEAM), ("user:acme/alice", USER), (own, KEY))
    assert Keys(path).tenant(secret).lines == lines


def test_a_key_without_limits_of_its_own_is_counted(path: Path):
    """Under its org's it is limited all the same."""
    keys = Keys(path)
    secret, made = keys.create("alice", "acme")

    assert (keys.tenant(secret).lines, keys.tenant(secret).limited) == (((f"key:{made.key_id}", RECORD),), False)
    keys.set_limit("org:acme", ORG)
    assert (keys.tenant(secret).own, keys.tenant(secret).limited, keys.tenant(secret).pays) == ((), True, False)
    keys.set_limit("org:acme", USER)
    assert keys.tenant(secret).pays


def test_limits_change_while_a_gateway_runs(path: Path):
    """Set, changed and removed by another process, they hold for the next request."""
    keys, other = Keys(path), Keys(path)
    secret, made = keys.create("alice", limits=[KEY])
    own = f"key:{made.key_id}"

    other.set_limit(own, Limit(7))
    assert keys.tenant(secret).own == (Limit(7),)
    other.set_limit(own, TEAM)
    assert keys.tenant(secret).own == (Limit(7), TEAM)
    assert other.remove_limit(own, Unit.TOKENS, Window.TOTAL)
    assert not other.remove_limit(own, Unit.TOKENS, Window.TOTAL)
    assert keys.tenant(secret).own == (TEAM,)
    assert keys.limits() == {own: (TEAM,)}


def test_what_running_requests_must_hear_of_is_told_once(path: Path):
    """Keys that were revoked and limits that were changed, here or by another process; nothing of before the start."""
    old = Keys(path)
    old.revoke(old.create("alice", limits=[KEY])[1].key_id)
    keys = Keys(path)
    assert keys.news() == News(frozenset(), ())
    _, made = keys.create("bob")
    own = f"key:{made.key_id}"

    old.set_limit(own, Limit(7))
    old.set_limit(own, Limit(8))
    keys.set_limit("org:acme", ORG)
    old.revoke(made.key_id)
    first = keys.news()
    old.remove_limit(own, Unit.TOKENS, Window.TOTAL)

    assert first.revoked == {made.key_id}
    assert set(first.limits) == {(own, Limit(8)), ("org:acme", ORG)}
    assert keys.news() == News(frozenset(), ((own, RECORD),))
    assert keys.news() == News(frozenset(), ())


def test_a_stored_limit_stands_before_a_declared_one(path: Path):
    """And the declared one shows again when it is removed."""
    budget = DeclaredBudget(org="acme", limits=(ORG,))
    keys = Keys(path, budgets=(budget,))
    secret, _ = keys.create("alice", "acme")
    assert keys.tenant(secret).lines[0].limit == ORG

    keys.set_limit("org:acme", Limit(5))
    assert keys.tenant(secret).lines[0].limit == Limit(5)
    assert Keys(path, budgets=(budget,)).limits() == {"org:acme": (Limit(5),)}
    keys.remove_limit("org:acme", Unit.TOKENS, Window.TOTAL)
    assert keys.tenant(secret).lines[0].limit == ORG


def test_only_what_changed_is_read_again(path: Path):
    """Ten thousand keys are not read for one that was made."""
    keys, other = Keys(path), Keys(path)
    other.create("alice")
    keys.list()
    read: list[str] = []
    keys._db.set_trace_callback(read.append)
    secret, _ = other.create("bob", limits=[KEY])

    assert keys.tenant(secret).user == "bob"

    assert [text for text in read if "FROM keys" in text] == ["SELECT * FROM keys WHERE change > 1 ORDER BY change"]


def test_a_key_store_of_the_first_format_is_taken_over(path: Path):
    """Keys, budgets and revocations are as they were."""
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.executescript("""
        CREATE TABLE keys (
            key_id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, user TEXT NOT NULL, org TEXT,
            tokens INTEGER, window TEXT, created_at REAL NOT NULL, revoked_at REAL
        ) STRICT;
        CREATE TABLE facts (name TEXT PRIMARY KEY) STRICT;
        PRAGMA user_version = 1;
    """)
    digests = [hashlib.sha256(secret).digest() for secret in (b"one", b"two")]
    db.execute("INSERT INTO keys VALUES (?, ?, 'alice', 'acme', 100, 'day', 1000.0, NULL)", ("key_1", digests[0]))
    db.execute("INSERT INTO keys VALUES (?, ?, 'bob', NULL, NULL, NULL, 2000.0, 3000.0)", ("key_2", digests[1]))
    db.commit()
    db.close()

    rows = Keys(path).list()

    assert [(row.tenant.user, row.tenant.org, row.created_at, row.revoked_at) for row in rows] == [
        ("alice", "acme", 1000.0, None), ("bob", None, 2000.0, 3000.0)
    ]  # fmt: skip
    assert [row.tenant.own for row in rows] == [(Limit(100, Window.DAY),), ()]


def test_a_key_that_cannot_be_kept_is_not_made(path: Path, monkeypatch):
    """Neither it nor a part of its limits, when a statement of its making fails."""
    keys = Keys(path)
    monkeypatch.setattr(module, "limit_kept", lambda at, limit: ("INSERT INTO nowhere VALUES (1)", {}))

    with pytest.raises(Refused):
        keys.create("alice", limits=[KEY])

    assert keys.list() == []
    monkeypatch.undo()
    assert keys.create("alice", limits=[KEY])


def test_secrets_are_not_at_rest(path: Path):
    """The secret's bytes are nowhere in the data directory, and only the owner may read it."""
    keys = Keys(path)
    secret, _ = keys.create("alice")

    files = list(path.parent.iterdir())

    assert len(files) == 3  # the database, its log and its index are all looked at
    assert all(secret[3:].encode() not in file.read_bytes() for file in files)
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_everybody_is_open_until_the_first_key(path: Path):
    """Without keys any secret, or none, is the open tenant; the first key ends that at once."""
    keys = Keys(path)
    assert keys.tenant(None).source == "open"
    assert keys.tenant("anything").source == "open"
    assert not keys.any_configured

    Keys(path).create("alice")

    assert keys.any_configured
    assert refusal(keys, None).reason is Reason.UNAUTHORIZED
    assert refusal(keys, "anything").reason is Reason.UNAUTHORIZED


def test_revoking_the_last_key_does_not_fall_open(path: Path):
    """A fleet whose keys are all revoked admits nobody, also after a restart."""
    keys = Keys(path)
    secret, tenant = keys.create("alice")

    assert keys.revoke(tenant.key_id)

    assert not keys.revoke(tenant.key_id)
    for store in (keys, Keys(path)):
        assert store.any_configured
        assert refusal(store, secret).reason is Reason.UNAUTHORIZED
        assert refusal(store, None).reason is Reason.UNAUTHORIZED


def test_removing_the_last_declared_key_does_not_fall_open(path: Path):
    """A declared key that is gone from the configuration leaves a closed door behind."""
    Keys(path, (declared("hush"),)).close()

    keys = Keys(path)

    assert keys.any_configured
    assert refusal(keys, "hush").detail == "unknown API key"


def test_another_process_is_noticed(path: Path):
    """A key made, and one revoked, by another process count at the next lookup."""
    keys = Keys(path)
    secret, tenant = keys.create("alice")
    code = (
        "import sys, pathlib; from gateway.books.keys import Keys; k = Keys(pathlib.Path(sys.argv[1]));"
        "print(k.create('bob')[0]); assert k.revoke(sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(path), tenant.key_id]

    out = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout

    assert keys.tenant(out.strip()).user == "bob"
    assert refusal(keys, secret).detail == f"the API key {tenant.key_id} was revoked"


def test_lookups_come_from_memory(path: Path):
    """A lookup asks the database for its version only."""
    keys = Keys(path)
    secret, _ = keys.create("alice")
    keys.tenant(secret)
    asked: list[str] = []
    keys._db.set_trace_callback(asked.append)

    keys.tenant(secret)

    assert asked == ["PRAGMA data_version"]


def test_declared_keys(path: Path):
    """A key from the configuration works, is listed, and is not revoked by the store alone."""
    keys = Keys(path, (declared("hush"),))

    tenant = keys.tenant("hush")

    assert (tenant.user, tenant.source) == ("carol", "config")
    assert [row.tenant for row in keys.list()] == [tenant]
    assert not keys.revoke(tenant.key_id)


def test_time_limits_are_the_shortest_that_a_key_s_scopes_say(path: Path):
    """Its org's, its user's and its own; keys of the store are under those of their scopes too."""
    own = declared("hush").model_copy(update={"org": "acme", "timeouts": TurnTimes(total_s=60)})
    budgets = (
        DeclaredBudget.model_validate({"org": "acme", "timeouts": {"total_s": 90, "session_s": 900}}),
        DeclaredBudget.model_validate({"org": "acme", "user": "dave", "timeouts": {"session_s": 300}}),
    )
    keys = Keys(path, (own, declared("open")), budgets=budgets)
    _, stored = keys.create("dave", org="acme")

    assert keys.tenant("hush").times == Times(60, 900)
    assert keys.tenant("open").times == UNSAID
    assert stored.times == Times(90, 300)


def test_of_what_becomes_of_long_prompts_the_narrowest_word_holds(path: Path):
    """A key's before its org's; where nobody says anything they are refused."""
    own = declared("hush").model_copy(update={"org": "acme", "over_context": "refuse"})
    budgets = (DeclaredBudget.model_validate({"org": "acme", "over_context": "truncate"}),)
    keys = Keys(path, (own, declared("open")), budgets=budgets)
    _, stored = keys.create("dave", org="acme")

    assert [keys.tenant("hush").truncates, keys.tenant("open").truncates, stored.truncates] == [False, False, True]


def test_a_key_s_tier_is_the_one_that_the_narrowest_of_its_scopes_names(path: Path):
    """Its own, else its user's, its team's, its org's; where none does, nobody says which."""
    named = [{"org": "acme"}, {"org": "acme", "team": "search"}, {"org": "acme", "user": "dave"}]
    budgets = tuple(
        DeclaredBudget.model_validate({**one, "tier": tier}) for one, tier in zip(named, "otu", strict=True)
    )
    own = declared("hush").model_copy(update={"org": "acme", "team": "search", "tier": "k"})
    keys = Keys(path, (own, declared("open")), budgets=budgets)
    stored = [
        keys.create(user, org="acme", team=team)[1].tier
        for user, team in (("dave", "search"), ("erin", "search"), ("erin", None))
    ]

    assert [keys.tenant("hush").tier, *stored, keys.tenant("open").tier] == ["k", "u", "t", "o", None]


def test_a_key_both_stored_and_declared_can_be_revoked(path: Path):
    """Declaring a stored key does not bring it back once it is revoked."""
    secret, tenant = Keys(path).create("alice")
    keys = Keys(path, (declared(secret),))
    assert keys.tenant(secret).user == "alice"

    keys.revoke(tenant.key_id)

    assert "revoked" in refusal(keys, secret).detail


@pytest.mark.parametrize("secret", ["hf-" + "x" * 43, "\udcff", "key_000000000000", " "])
def test_refusals_do_not_repeat_the_secret(path: Path, secret: str):
    """An unknown secret is refused in words that do not hold it; odd bytes are just unknown."""
    keys = Keys(path, (declared("hush"),))

    assert refusal(keys, secret).detail == "unknown API key"


def test_the_start_of_a_digest_is_not_enough(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two secrets whose digests start alike are told apart, and both work."""
    monkeypatch.setattr(module, "key_id_of", lambda digest: "key_same")
    keys = Keys(path, (declared("one", "user1"), declared("two", "user2")))

    assert [keys.tenant(secret).user for secret in ("one", "two")] == ["user1", "user2"]
    assert refusal(keys, "three").reason is Reason.UNAUTHORIZED


def test_a_broken_store_refuses_everybody(path: Path):
    """A key store that cannot be read is a refusal by its own reason, never an open door."""
    path.parent.mkdir()
    path.write_bytes(os.urandom(8192))

    with pytest.raises(Refused) as caught:
        Keys(path)

    assert caught.value.reason is Reason.BOOKS


def test_a_store_that_breaks_while_running_refuses_everybody(path: Path):
    """Keys in memory do not outlive the store they came from, and a failed reading is tried again."""
    keys = Keys(path)
    secret, _ = keys.create("alice")
    other = sqlite3.connect(path)
    other.execute("ALTER TABLE keys RENAME TO gone")
    other.commit()

    assert refusal(keys, secret).reason is Reason.BOOKS
    assert refusal(keys, secret).reason is Reason.BOOKS

    other.execute("ALTER TABLE gone RENAME TO keys")
    other.commit()
    assert keys.tenant(secret).user == "alice"


def test_an_error_names_the_file_to_whoever_runs_the_gateway(path: Path):
    """At the start and in key commands the file is named; clients do not learn where it is."""
    keys = Keys(path)
    secret, _ = keys.create("alice")
    other = sqlite3.connect(path)
    other.execute("ALTER TABLE keys RENAME TO gone")
    other.commit()

    with pytest.raises(Refused, match=re.escape(str(path))):
        keys.create("bob")
    assert str(path) not in refusal(keys, secret).detail

    other.execute("CREATE TABLE keys AS SELECT 'of another shape'")
    other.commit()
    with pytest.raises(Refused, match=re.escape(str(path))):
        Keys(path)


@pytest.mark.slow
def test_a_store_that_another_process_writes_to_is_read_all_the_same(path: Path):
    """While a stranger has a transaction open, lookups go on at once; making a key says why it cannot be."""
    keys = Keys(path)
    secret, _ = keys.create("alice")
    stranger = sqlite3.connect(path, isolation_level=None)
    stranger.execute("BEGIN EXCLUSIVE")

    begin_s = time.monotonic()
    tenant = keys.tenant(secret)
    took_s = time.monotonic() - begin_s
    with pytest.raises(Refused, match="locked"):
        keys.create("bob")
    stranger.execute("ROLLBACK")

    assert tenant.user == "alice"
    assert took_s < 1
    assert keys.create("bob")


@pytest.mark.parametrize(("code", "served"), [(sqlite3.SQLITE_BUSY, True), (sqlite3.SQLITE_IOERR, False)])
def test_keys_are_believed_for_a_while_when_the_store_cannot_be_looked_at(path: Path, monkeypatch, code, served):
    """A locked store leaves the keys as they were, for half a minute; a broken one leaves none."""
    now_s = 1000.0
    keys = Keys(path, clock=lambda: now_s)
    secret, _ = keys.create("alice")

    def look() -> None:
        error = sqlite3.OperationalError("no")
        error.sqlite_errorcode = code
        raise error

    monkeypatch.setattr(keys, "_look", look)
    now_s += 20

    if served:
        assert keys.tenant(secret).user == "alice"
        now_s += 20
    assert refusal(keys, secret).reason is Reason.BOOKS


def test_a_newer_store_is_left_alone(path: Path):
    """A store of a later version is refused, not misread."""
    Keys(path).close()
    sqlite3.connect(path).execute("PRAGMA user_version = 99")

    with pytest.raises(Refused, match="newer"):
        Keys(path)


def test_list_shows_when(path: Path):
    """Rows hold when a key was made and revoked, in order of making."""
    now_s = 1000.0
    keys = Keys(path, clock=lambda: now_s)
    _, first = keys.create("alice")
    now_s = 2000.0
    keys.create("bob")
    keys.revoke(first.key_id)

    times = [(row.tenant.user, row.created_at, row.revoked_at) for row in keys.list()]

    assert times == [("alice", 1000.0, 2000.0), ("bob", 2000.0, None)]


@pytest.mark.parametrize("user", ["", "a" * 257, "a\nb"])
def test_names_are_printable(path: Path, user: str):
    """A user name that could not be shown is refused."""
    with pytest.raises(ValueError, match="printable"):
        Keys(path).create(user)


def test_looks_are_shared_but_a_new_key_works_at_once(tmp_path):
    """Under load many requests share one look at the store; only a revocation may then take `look_every_s`."""
    now = [1000.0]
    keys = Keys(tmp_path / "keys.db", clock=lambda: now[0], look_every_s=0.01)
    other = Keys(tmp_path / "keys.db")
    secret, tenant = other.create("alice")
    now[0] += 1
    assert keys.tenant(secret) == tenant

    second, _ = other.create("bob")
    assert keys.tenant(second).user == "bob"
    other.revoke(tenant.key_id)
    assert keys.tenant(secret) == tenant
    now[0] += 0.02
    with pytest.raises(Refused):
        keys.tenant(secret)
    keys.close()
    other.close()


def test_breakers_are_the_configurations(tmp_path):
    """Of a key, of an org, or of all; and they hold for limits of the store."""
    breaker = {"answer_tokens": 7}
    declared = DeclaredKey(user="bob", sha256="ab" * 32, limits=("9/day",), breaker="off")
    budgets = (DeclaredBudget(org="acme", breaker=breaker),)
    keys = Keys(tmp_path / "keys.db", (declared,), budgets=budgets, plan=Plan())
    _, alice = keys.create("alice", "acme", [Limit(5, Window.DAY)])
    _, carol = keys.create("carol", None, [Limit(5, Window.DAY)])

    assert [one.plan.answer_tokens for one in alice.breakers] == [7]
    assert [one.plan for one in carol.breakers] == [Plan()]
    assert next(row.tenant for row in keys.list() if row.tenant.user == "bob").breakers == ()
    keys.close()


# ---------------------------------------------------------------- top-ups and orders


class Clock:
    now_s = 1_767_268_800.0  # 2026-01-01T12:00:00Z

    def __call__(self) -> float:
        return self.now_s


def test_a_top_up_is_more_of_one_window(path: Path):
    """Of all keys under the limit, also for processes that come later; the next window has none of it."""
    clock = Clock()
    keys = Keys(path, clock=clock)
    secret, _ = keys.create("alice", "acme")
    keys.set_limit("org:acme", TEAM)

    one, new = keys.top_up("x", "org:acme", Limit(500, Window.DAY))
    keys.top_up("y", "org:acme", Limit(30, Window.DAY))

    assert (one.window_id, one.amount, new) == ("2026-01-01", 500, True)
    for reader in (keys, Keys(path, clock=clock)):
        limit = reader.tenant(secret).lines[0].limit
        assert (limit.amount, limit.within("2026-01-01"), limit.within("2026-01-02")) == (2_000, 2_530, 2_000)
        assert reader.limits()["org:acme"] == (limit,)


def test_a_top_up_is_made_once_for_its_name(path: Path):
    """Also days later, in another window; a name that means another one is refused."""
    clock = Clock()
    keys = Keys(path, clock=clock)
    keys.set_limit("org:acme", TEAM)
    first, _ = keys.top_up("x", "org:acme", Limit(500, Window.DAY))
    clock.now_s += 3 * 86_400

    assert Keys(path, clock=clock).top_up("x", "org:acme", Limit(500, Window.DAY)) == (first, False)
    for at, more in (("org:acme", Limit(501, Window.DAY)), ("org:other", Limit(500, Window.DAY)), ("org:acme", KEY)):
        with pytest.raises(ValueError, match="another id"):
            keys.top_up("x", at, more)
    assert keys.limits()["org:acme"][0].extra == (("2026-01-01", 500),)


def test_there_is_nothing_to_add_to_without_a_limit(path: Path):
    """Of the same scope, unit and window; a declared one is one."""
    keys = Keys(path, budgets=(DeclaredBudget(org="acme", limits=(ORG,)),))

    for at, more in (("org:acme", TEAM), ("org:other", ORG)):
        with pytest.raises(LookupError, match="has no limit"):
            keys.top_up("x", at, more)
    assert keys.top_up("x", "org:acme", Limit(5))[1]
    assert keys.limits()["org:acme"][0].within("total") == 10_005


def test_a_top_up_outlives_a_change_of_its_limit(path: Path):
    """In its window: also where the limit is taken away and set again."""
    clock = Clock()
    keys = Keys(path, clock=clock)
    keys.set_limit("org:acme", TEAM)
    keys.top_up("x", "org:acme", Limit(500, Window.DAY))

    keys.remove_limit("org:acme", Unit.TOKENS, Window.DAY)
    keys.set_limit("org:acme", Limit(100, Window.DAY))

    assert keys.limits()["org:acme"][0].within("2026-01-01") == 600


def test_top_ups_of_windows_that_are_over_are_forgotten(path: Path):
    """In memory all but a few, on disk after two months; those of a total never."""
    clock = Clock()
    keys = Keys(path, clock=clock)
    keys.set_limits({"org:acme": (TEAM, ORG)})
    keys.top_up("total", "org:acme", Limit(1))
    for number in range(70):
        keys.top_up(f"day {number}", "org:acme", Limit(1, Window.DAY))
        clock.now_s += 86_400

    total, day = sorted(keys.limits()["org:acme"], key=lambda limit: -limit.amount)
    stored = sqlite3.connect(path).execute("SELECT count(*) FROM top_ups").fetchone()[0]

    assert total.within("total") == 10_001
    assert [at for at, _ in day.extra] == ["2026-03-08", "2026-03-09", "2026-03-10", "2026-03-11"]
    assert stored == 1 + 63
    assert {limit.extra for limit in Keys(path, clock=clock).limits()["org:acme"]} == {total.extra, day.extra}


def test_a_running_gateway_hears_of_top_ups_and_orders(path: Path):
    """Of orders also those from before its start: nobody may have carried them out."""
    old = Keys(path, clock=Clock())
    old.set_limit("org:acme", TEAM)
    assert old.order("a", "[]")
    assert not old.order("a", "[1]")
    keys = Keys(path)
    assert keys.news() == News(frozenset(), (), (("a", "[]"),))

    old.top_up("x", "org:acme", Limit(500, Window.DAY))
    old.order_done("a")
    old.order("b", "[2]")

    (line,), orders = keys.news()[1:]
    assert (line.scope, line.limit.within("2026-01-01")) == ("org:acme", 2_500)
    assert orders == (("b", "[2]"),)
    assert Keys(path).news().orders == (("b", "[2]"),)


def test_a_limit_says_when_it_was_set(path: Path):
    """Or was added to, or taken away: then the declared one is as new as that. Later, whatever the clock does."""
    clock = Clock()
    keys = Keys(path, clock=clock, budgets=(DeclaredBudget(org="acme", limits=(ORG,)),))
    at = [keys.limits()["org:acme"][0].as_of]

    keys.set_limit("org:acme", Limit(5))
    at.append(keys.limits()["org:acme"][0].as_of)
    clock.now_s += 10
    keys.top_up("x", "org:acme", Limit(5))
    at.append(keys.limits()["org:acme"][0].as_of)
    clock.now_s -= 60
    keys.set_limit("org:acme", Limit(7))
    at.append(keys.limits()["org:acme"][0].as_of)
    keys.remove_limit("org:acme", Unit.TOKENS, Window.TOTAL)
    at.append(keys.limits()["org:acme"][0].as_of)

    start = clock.now_s + 50
    assert at[:3] == [0.0, start, start + 10]
    assert start + 10 < at[3] < at[4] < start + 11
    again = Keys(path, clock=clock, budgets=(DeclaredBudget(org="acme", limits=(ORG,)),))
    assert again.limits()["org:acme"][0].as_of == at[4]
    assert [line.limit.as_of for line in keys.news().limits] == [at[4]]


def test_a_limit_that_is_taken_away_says_when(path: Path):
    """So that the vault of shared budgets lets go of it."""
    clock = Clock()
    keys = Keys(path, clock=clock)
    keys.set_limit("org:acme", Limit(5))
    clock.now_s += 10
    keys.remove_limit("org:acme", Unit.TOKENS, Window.TOTAL)

    (line,) = keys.news().limits
    assert (line.limit, line.limit.as_of) == (RECORD, clock.now_s)


def test_the_limit_of_a_session_is_as_new_as_any(path: Path):
    """When a tighter one is taken away, the one that shows again is the later news."""
    clock = Clock()
    keys = Keys(path, clock=clock)
    secret, _ = keys.create("alice", "acme", team="search")
    keys.set_limit(each_of("session", "org:acme"), Limit(1_000))
    clock.now_s += 10
    keys.set_limit(each_of("session", "team:acme/search"), Limit(500))
    tight = keys.tenant(secret).each["session"][0]
    clock.now_s += 10
    keys.remove_limit(each_of("session", "team:acme/search"), Unit.TOKENS, Window.TOTAL)
    (shown,) = keys.tenant(secret).each["session"]

    assert [(one.amount, one.as_of) for one in (tight, shown)] == [(500, clock.now_s - 10), (1_000, clock.now_s)]


def test_a_key_store_of_the_second_format_is_taken_over(path: Path):
    """Its limits are as if they had been declared, until they are set anew."""
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.executescript("""
        CREATE TABLE keys (
            key_id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, user TEXT NOT NULL, org TEXT, team TEXT,
            created_at REAL NOT NULL, revoked_at REAL, change INTEGER NOT NULL
        ) STRICT;
        CREATE TABLE limits (
            scope TEXT, unit TEXT, window TEXT, amount INTEGER, change INTEGER NOT NULL,
            PRIMARY KEY (scope, unit, window)
        ) STRICT;
        CREATE TABLE facts (name TEXT PRIMARY KEY) STRICT;
        CREATE TABLE changes (number INTEGER NOT NULL) STRICT;
        INSERT INTO changes VALUES (3);
        INSERT INTO limits VALUES ('org:acme', 'tokens', 'day', 2000, 3);
        PRAGMA user_version = 2;
    """)
    db.close()
    clock = Clock()
    keys = Keys(path, clock=clock)
    (old,) = keys.limits()["org:acme"]
    keys.top_up("x", "org:acme", Limit(500, Window.DAY))
    (topped_up,) = Keys(path).limits()["org:acme"]

    assert (old, old.as_of) == (TEAM, 0.0)
    assert (topped_up.within("2026-01-01"), topped_up.as_of) == (2_500, clock.now_s)


def test_a_scope_is_under_the_tag_of_its_org(path: Path):
    """Keys by the org they were made in, also those of after the start; nobody can ask for one that is not known."""
    keys = Keys(path)
    _, made = keys.create("alice", "acme")

    tags = {at: keys.tag_of(at) for at in (f"key:{made.key_id}", f"session:{made.key_id}/s", "key:open", "key:gone")}

    assert list(tags.values()) == ["org:acme", "org:acme", "nobody", None]


def test_too_many_orders_are_refused(path: Path):
    """Nobody carries them out, it seems."""
    keys = Keys(path)
    for number in range(100):
        keys.order(str(number), "[]")

    with pytest.raises(ValueError, match="wait for a gateway"):
        keys.order("more", "[]")


def test_the_limits_of_a_scope_are_set_at_once(path: Path):
    """Others it had are gone, declared ones show again; other scopes keep theirs."""
    keys = Keys(path, budgets=(DeclaredBudget(org="acme", limits=(ORG,)),))
    keys.set_limit("org:acme", Limit(1))
    keys.set_limit("org:acme", USER)
    keys.set_limit("org:other", USER)

    assert keys.set_limits({"org:acme": (TEAM,), "each session of org:acme": (KEY,)})
    assert keys.limits() == {"org:acme": (ORG, TEAM), "each session of org:acme": (KEY,), "org:other": (USER,)}
    assert keys.set_limits({"org:acme": (), "each session of org:acme": ()})
    assert keys.limits() == {"org:acme": (ORG,), "org:other": (USER,)}
    assert not keys.set_limits({"org:acme": ()})


def test_a_second_look_at_the_file_leaves_the_first_one_its_locks(path: Path):
    """Whoever opens and closes keys.db in a gateway must not make it deaf for what other processes write."""
    keys = Keys(path)
    Keys(path).close()
    other = (
        "import sys, pathlib; from gateway.books.keys import Keys; k = Keys(pathlib.Path(sys.argv[1]));"
        "k.create(sys.argv[2]); k.close()"
    )
    for count, user in enumerate(("alice", "bob"), 1):
        subprocess.run([sys.executable, "-c", other, str(path), user], check=True, cwd=ROOT)
        assert len(keys.list()) == count


def test_what_is_changed_while_the_changes_are_read_is_read_later(path: Path):
    """Limits and top-ups share the numbers of changes: a top-up that is seen must not hide a limit that is not."""
    clock = Clock()
    keys, writer = Keys(path, clock=clock), Keys(path, clock=clock)
    secret, _ = writer.create("alice", "acme", [Limit(1_000_000)])
    writer.set_limit("org:acme", TEAM)
    taken = keys._take_limit_in

    def take(*row: object) -> None:
        taken(*row)
        if "org:acme" in row:  # between the two tables
            keys._take_limit_in = taken
            writer.set_limit("user:acme/alice", Limit(10))
            writer.top_up("x", "org:acme", Limit(5, Window.DAY))

    keys._take_limit_in = take  # type: ignore[method-assign]
    keys.tenant(secret)

    assert Line("user:acme/alice", Limit(10)) in keys.tenant(secret).lines
    assert keys.limits()["org:acme"][0].within("2026-01-01") == TEAM.amount + 5


def test_who_comes_right_after_the_first_key_was_made_is_let_in_by_it_or_not_at_all(tmp_path):
    """However fresh the last look is: nobody spends unbounded what a key was just given, nor without any key."""
    keys = Keys(tmp_path / "keys.db", clock=lambda: 1000.0, look_every_s=60.0)
    assert keys.tenant("whatever") is OPEN
    other = Keys(tmp_path / "keys.db")
    secret, tenant = other.create("alice")

    for stranger in (None, "whatever"):
        with pytest.raises(Refused):
            keys.tenant(stranger)
    assert keys.tenant(secret) == tenant
    keys.close()
    other.close()
