"""Gateways that are gone: written off by those that live, and nobody else ever is."""

import asyncio
from random import Random
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from gateway.books.ledger import gone as gone_module
from gateway.books.ledger.contract import Place
from gateway.books.ledger.gone import CROWDED_S, FIRST_S, LOOK_S, PRESENT, SETTLED_S, Gone
from gateway.books.vault import account
from gateway.books.vault.contract import Claim, Gateway, VaultDown
from gateway.books.vault.memory import MemoryVault
from tests.gateways import Clock
from tests.lossy_vault import LossyVault

DAY_S = 86_400.0
HOUR_S = 3600.0
TAG, PLACE = "org:acme", Place("org:acme", "tokens", "total")


def leases(*tags, crowded=()):
    """Those that go on, and those that have no place, as far as it matters."""
    there = {tag: SimpleNamespace(valid=True, crowded=False) for tag in tags}
    return there | {tag: SimpleNamespace(valid=False, crowded=True) for tag in crowded}


class Register:
    """Who speaks."""

    def __init__(self, name):
        self.name, self.number = name, 0

    def me(self):
        self.number += 1
        return Gateway(self.name, 1, self.number)


class Fleet:
    """Gateways by name over one vault, and what is said of them. wall: the vault's clock; own: theirs.

    after_s: after which they write others off.
    """

    def __init__(self):
        self.after_s = 7 * DAY_S
        self.wall, self.own = Clock(), Clock()
        self.vault = MemoryVault(self.wall)
        self.way = LossyVault(self.vault)
        self.registers = {}
        self.gone = {}

    def pass_s(self, seconds):
        self.wall.now_s += seconds
        self.own.now_s += seconds

    async def leases(self, *names, tag=TAG, rights=100, spent=60):
        for name in names:
            me = self.registers.setdefault(name, Register(name)).me()
            await self.vault.exchange(tag, me, [Claim(PLACE, 100_000, 0, rights, spent)], False)

    async def look(self, *names, tags=(TAG,), crowded=()):
        """Have them look, and wait for what comes of it."""
        for name in names:
            if name not in self.gone:
                register = self.registers.setdefault(name, Register(name))
                self.gone[name] = Gone(self.way, register, self.after_s, self.own, Random(name))
                self.pass_s(FIRST_S)
            self.gone[name].look(leases(*tags, crowded=crowded))
            while self.gone[name].busy:  # noqa: ASYNC110 - an event for tests would be one more
                await asyncio.sleep(0)

    async def live(self, *names, seconds, tags=(TAG,), crowded=()):
        """Have them look for so long, as seldom as they like."""
        for _ in range(round(seconds / 2 / LOOK_S)):
            self.pass_s(2 * LOOK_S)
            await self.look(*names, tags=tags, crowded=crowded)

    async def fenced(self, tag=TAG):
        return {one.name for one in await self.vault.heard(tag) if one.fenced}


@pytest.fixture
async def fleet():
    made = Fleet()
    await made.vault.begin()
    return made


async def test_who_is_gone_for_long_is_written_off(fleet):
    """All that it had leased is charged, it is fenced, and one line says who did it."""
    await fleet.leases("dead", "alive")
    await fleet.look("dead", "alive")
    fleet.pass_s(7 * DAY_S - 10 * LOOK_S)
    await fleet.live("alive", seconds=8 * LOOK_S)
    before = await fleet.fenced()
    with capture_logs() as said:
        await fleet.live("alive", seconds=6 * LOOK_S)

    assert before == set()
    assert await fleet.fenced() == {"dead"}
    assert [one.spent for one in await fleet.vault.standings(TAG)] == [160]
    (line,) = [one for one in said if one["event"] == "gateway.written_off" and one["tag"] == TAG]
    assert (line["gateway"], line["by"], line["accounts"]) == ("dead", "alive", 1)
    assert line["unheard_s"] >= 7 * DAY_S


async def test_who_lives_but_does_not_use_a_tag_is_not_written_off(fleet):
    """It says elsewhere that it is there; an org may be used once a month."""
    await fleet.leases("idle", "alive")
    await fleet.look("idle", "alive")
    fleet.pass_s(30 * DAY_S)
    await fleet.look("idle")
    await fleet.live("alive", "idle", seconds=SETTLED_S + 4 * LOOK_S)

    assert await fleet.fenced() == set()


async def test_who_never_said_that_it_is_there_is_gone_once_others_have_been_there_for_as_long(fleet):
    """It may be one of an older Holdfast, which lives and was not asked for this org in a rolling upgrade."""
    fleet.after_s = HOUR_S
    await fleet.leases("old")
    fleet.pass_s(8 * DAY_S)
    await fleet.look("alive")
    await fleet.live("alive", seconds=SETTLED_S + HOUR_S - 2 * LOOK_S)
    before = await fleet.fenced()
    await fleet.live("alive", seconds=4 * LOOK_S)

    assert before == set()
    assert await fleet.fenced() == {"old"}


async def test_who_writes_nobody_off_says_that_it_is_there(fleet):
    """So that others do not take it for gone; where it finds no place it only waits."""
    fleet.after_s = None
    await fleet.leases("dead", "never")
    await fleet.look("never", "dead")
    fleet.pass_s(30 * DAY_S)
    await fleet.live("never", seconds=2 * SETTLED_S, crowded=(TAG,))
    kept = await fleet.fenced()
    fleet.after_s = 7 * DAY_S
    await fleet.live("alive", "never", seconds=2 * SETTLED_S)

    assert kept == set()
    assert await fleet.fenced() == {"dead"}


async def test_who_began_while_the_vault_was_away_waits_for_others_as_all_do(fleet):
    """From when it is back, not from its own start."""
    await fleet.leases("a", "b")
    await fleet.look("a", "b")
    fleet.way.down = True
    await fleet.look("new")
    fleet.pass_s(8 * DAY_S)
    await fleet.live("new", seconds=2 * SETTLED_S)
    fleet.way.down = False
    await fleet.live("new", seconds=4 * LOOK_S, crowded=(TAG,))
    await fleet.live("a", "b", "new", seconds=2 * SETTLED_S)

    assert await fleet.fenced() == await fleet.fenced(PRESENT) == set()


async def test_who_finds_no_place_to_say_that_it_is_there_sees_that_times_are_wrong(fleet, monkeypatch):
    """The vault's clock jumps: others look silent, and it cannot see that of itself."""
    monkeypatch.setattr(account, "GATEWAYS_MAX", 2)
    monkeypatch.setattr(gone_module, "GATEWAYS_MAX", 2)
    await fleet.look("a", "b", "new")
    await fleet.live("a", "b", "new", seconds=2 * SETTLED_S)
    fleet.wall.now_s += 30 * DAY_S
    await fleet.live("new", "a", "b", seconds=2 * LOOK_S)
    after_jump = await fleet.fenced(PRESENT)
    fleet.pass_s(30 * DAY_S)
    await fleet.live("new", "a", "b", seconds=2 * SETTLED_S)

    assert after_jump == await fleet.fenced(PRESENT) == set()


async def test_what_was_written_off_by_half_is_finished(fleet, monkeypatch):
    """The vault went away between the fence and the charges: a later look goes on, with nobody else."""
    await fleet.leases("dead", "other")
    await fleet.look("dead", "alive")
    fleet.pass_s(7 * DAY_S)
    write_off, tried = fleet.way.write_off, []

    async def by_half(tag, name, unheard_s):
        tried.append((tag, name))
        answer = await write_off(tag, name, unheard_s)
        if len(tried) == 1:
            raise VaultDown("unanswered")
        return answer

    monkeypatch.setattr(fleet.way, "write_off", by_half)
    await fleet.live("alive", seconds=3 * SETTLED_S)

    assert [one for one in tried if one[0] == TAG] == [(TAG, "dead")] * 2


async def test_where_not_all_can_say_that_they_are_there_nobody_is_gone_for_not_saying_it(fleet, monkeypatch):
    """Those that live and found no place there are not written off; those that had one and are gone make room."""
    for one in (account, gone_module):
        monkeypatch.setattr(one, "GATEWAYS_MAX", 2)
    fleet.after_s = HOUR_S
    await fleet.leases("idle")
    await fleet.look("alive", "dead")
    await fleet.look("idle")
    await fleet.live("alive", seconds=HOUR_S + SETTLED_S)
    room = await fleet.fenced(PRESENT)
    fleet.gone.pop("idle")
    await fleet.leases("other", tag=PRESENT)
    await fleet.live("alive", seconds=2 * HOUR_S)
    full = await fleet.fenced()
    await fleet.vault.write_off(PRESENT, "other")
    await fleet.live("alive", seconds=2 * LOOK_S)
    just_left = await fleet.fenced()
    await fleet.live("idle", "alive", seconds=2 * HOUR_S)

    assert room == {"dead"}
    assert full == just_left == set()
    assert await fleet.fenced() == set()


async def test_who_speaks_under_the_tag_is_there_whether_or_not_it_says_so(fleet, monkeypatch):
    """Nobody even tries to write it off."""
    tried = []
    monkeypatch.setattr(fleet.way, "write_off", lambda tag, name, unheard_s: tried.append(name))
    await fleet.look("alive")
    for _ in range(4):
        fleet.pass_s(6 * DAY_S)
        await fleet.leases("old")
        await fleet.live("alive", seconds=2 * SETTLED_S)

    assert tried == []


async def test_who_speaks_at_the_last_moment_is_not_written_off(fleet, monkeypatch):
    """The vault itself looks once more, in the same step."""
    await fleet.leases("late")
    await fleet.look("late", "alive")
    fleet.pass_s(8 * DAY_S)
    was = {tag: await fleet.vault.heard(tag) for tag in (TAG, PRESENT)}
    await fleet.leases("late")
    await fleet.look("late")
    heard = fleet.way.heard

    async def before(tag):
        return [one for one in was[tag] if one.name == "late"] + [o for o in await heard(tag) if o.name != "late"]

    monkeypatch.setattr(fleet.way, "heard", before)
    await fleet.live("alive", seconds=2 * SETTLED_S)

    assert await fleet.fenced() == await fleet.fenced(PRESENT) == set()


async def test_nobody_writes_itself_off(fleet):
    """However long it was away."""
    await fleet.leases("alone")
    await fleet.look("alone")
    fleet.pass_s(30 * DAY_S)
    await fleet.live("alone", seconds=SETTLED_S + 4 * LOOK_S)

    assert await fleet.fenced() == await fleet.fenced(PRESENT) == set()


async def test_a_vault_whose_clock_jumps_has_nobody_written_off(fleet):
    """All look as if they had been silent for long; who sees that of itself waits until they have spoken again."""
    await fleet.leases("a", "b")
    await fleet.look("a", "b")
    await fleet.live("a", "b", seconds=SETTLED_S)
    fleet.wall.now_s += 30 * DAY_S
    await fleet.live("a", "b", seconds=2 * SETTLED_S)

    assert await fleet.fenced() == await fleet.fenced(PRESENT) == set()


async def test_a_vault_that_was_away_for_long_has_nobody_written_off(fleet):
    """Neither by who lived meanwhile, nor by who begins then."""
    await fleet.leases("a", "b")
    await fleet.look("a", "b")
    fleet.pass_s(30 * DAY_S)
    for names in (("a",), ("new",), ("new", "a", "b")):
        await fleet.live(*names, seconds=2 * LOOK_S)
    await fleet.live("a", "b", "new", seconds=2 * SETTLED_S)

    assert await fleet.fenced() == await fleet.fenced(PRESENT) == set()


async def test_a_vault_that_lost_who_is_there_has_nobody_written_off(fleet):
    """Until all that live have said it again."""
    await fleet.leases("a", "b")
    await fleet.look("a", "b")
    fleet.pass_s(8 * DAY_S)
    await fleet.live("a", "b", seconds=SETTLED_S)
    del fleet.vault.__dict__["_shelf"].__dict__["_tags"][PRESENT]
    await fleet.live("a", seconds=2 * LOOK_S)
    await fleet.live("b", "a", seconds=2 * SETTLED_S)

    assert await fleet.fenced() == await fleet.fenced(PRESENT) == set()


async def test_looks_are_seldom_and_never_two_at_once(fleet):
    """Once a minute at most, at times of each one's own."""
    await fleet.look("a", "b")
    first = fleet.way.exchanges
    began_s, looked = fleet.own.now_s, {"a": [], "b": []}
    for _ in range(1000):
        fleet.pass_s(1.0)
        for name in looked:
            before = fleet.way.exchanges
            await fleet.look(name)
            looked[name] += [fleet.own.now_s - began_s] * (fleet.way.exchanges - before)
    gaps = [after - before for times in looked.values() for before, after in zip([0.0, *times], times, strict=False)]

    assert first == 2
    assert LOOK_S <= min(gaps) <= max(gaps) <= 2 * LOOK_S + 1
    assert looked["a"] != looked["b"]
    fleet.pass_s(2 * LOOK_S)
    fleet.gone["a"].look(leases(TAG))
    task = fleet.gone["a"].__dict__["_task"]
    fleet.pass_s(2 * LOOK_S)
    fleet.gone["a"].look(leases(TAG))
    assert fleet.gone["a"].__dict__["_task"] is task
    await task


async def test_who_finds_no_place_writes_off_sooner_but_nobody_that_may_live(fleet, monkeypatch):
    """Those unheard for longest, and no more in one look than it may; at once only who was written off elsewhere."""
    monkeypatch.setattr(account, "GATEWAYS_MAX", 6)
    monkeypatch.setattr(gone_module, "WRITE_OFFS_MAX", 2)
    for name in "cab":
        await fleet.leases(name)
        fleet.pass_s(60.0)
    fleet.pass_s(7 * DAY_S)
    await fleet.leases("x", "y", "z")
    for name in "abcxyz":  # they have all been there
        await fleet.vault.exchange(PRESENT, Gateway(name, 9, 1), [], False)
    await fleet.vault.write_off(PRESENT, "b")
    fleet.pass_s(7 * DAY_S)
    await fleet.leases("x", "y", "z")

    await fleet.look("new", tags=(), crowded=(TAG,))
    at_once = await fleet.fenced()
    await fleet.live("new", seconds=SETTLED_S, tags=(), crowded=(TAG,))

    assert at_once == {"b"}
    assert await fleet.fenced() == {"b", "c", "a"}
    await fleet.leases("new")
    assert "new" in {one.name for one in await fleet.vault.heard(TAG)}


async def test_who_finds_no_place_does_not_ask_all_the_time(fleet):
    """Where nobody can be written off."""
    for _ in range(100):
        fleet.pass_s(0.25)
        await fleet.look("new", tags=(), crowded=(TAG,))

    assert 1 < fleet.way.exchanges <= 2 + 25 / CROWDED_S


async def test_of_many_tags_each_has_its_turn(fleet, monkeypatch):
    """So many in one look, and the others in the next ones."""
    monkeypatch.setattr(gone_module, "TAGS_MAX", 3)
    tags = [f"org:{number}" for number in range(8)]
    for tag in tags:
        await fleet.leases("dead", tag=tag)
    await fleet.look("dead", "alive")
    fleet.pass_s(8 * DAY_S)
    found = []
    for _ in range(4):
        await fleet.live("alive", seconds=2 * LOOK_S, tags=tags)
        found.append(sum([bool(await fleet.fenced(tag)) for tag in tags]))

    await fleet.live("alive", seconds=2 * SETTLED_S, tags=tags)
    assert [bool(await fleet.fenced(tag)) for tag in tags] == [True] * 8
    assert all(after - before <= 3 for before, after in zip([0, *found], found, strict=False))


async def test_while_the_vault_is_away_nobody_is_written_off(fleet):
    """And a later look goes on."""
    await fleet.leases("dead")
    await fleet.look("dead", "alive")
    fleet.pass_s(7 * DAY_S)
    fleet.way.down = True
    await fleet.live("alive", seconds=SETTLED_S)
    away = await fleet.fenced()
    fleet.way.down = False
    await fleet.live("alive", seconds=2 * SETTLED_S + 4 * LOOK_S)

    assert away == set()
    assert await fleet.fenced() == {"dead"}


async def test_who_was_written_off_says_so_and_writes_nobody_off(fleet):
    """It may be a copy, or come back too late."""
    await fleet.leases("dead")
    await fleet.look("late", "dead")
    await fleet.vault.write_off(PRESENT, "late")
    fleet.pass_s(8 * DAY_S)
    with capture_logs() as said:
        await fleet.live("late", seconds=2 * SETTLED_S)

    assert fleet.gone["late"].fenced
    assert [one["event"] for one in said] == ["gateway.was_written_off"]
    assert await fleet.fenced() == set()


async def test_a_start_that_fails_has_not_been_there(fleet):
    """Its directory may be one-off, and is started again all the same."""
    gone = Gone(fleet.way, Register("a"), DAY_S, fleet.own, Random(1))
    fleet.pass_s(FIRST_S - 0.1)
    gone.look(leases(TAG))

    assert not gone.busy


async def test_a_look_ends_with_its_gateway(fleet):
    """Nothing is left running, whether or not one was under way."""
    await fleet.look("a")
    await fleet.gone["a"].close()
    fleet.pass_s(2 * LOOK_S)
    fleet.gone["a"].look(leases(TAG))
    await fleet.gone["a"].close()

    assert not fleet.gone["a"].busy


async def test_a_fault_is_told_and_looks_go_on(fleet):
    """A bug must not be the end of them."""
    await fleet.look("a")
    heard, fleet.way.heard = fleet.way.heard, None
    with capture_logs() as said:
        await fleet.live("a", seconds=2 * LOOK_S)
    fleet.way.heard = heard
    before = fleet.way.exchanges
    await fleet.live("a", seconds=2 * LOOK_S)

    assert [one["event"] for one in said] == ["gateways.fault"]
    assert fleet.way.exchanges == before + 1
