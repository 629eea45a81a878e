"""One contract, every vault: the same suite over each engine, real Redis and a real cluster among them."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.books.ledger.contract import Place
from gateway.books.ledger.tables import WINDOW_S_MAX
from gateway.books.vault import account, redis, redis_server
from gateway.books.vault.contract import (
    LEASE_S,
    Closed,
    Crowded,
    Exchange,
    Fenced,
    Gateway,
    Given,
    Heard,
    Stale,
    Standing,
)
from gateway.books.vault.redis import account_key, member_of
from guards.escrow import AMOUNT_MAX
from tests.redis_servers import RedisServer, redis_cluster
from tests.vaults import ACME, TAG, Rig, Teller, claim

ENGINES = ("memory", "sqlite", "redis", "cluster")


PATIENCE_S = 10.0


@pytest.fixture(scope="module", autouse=True)
def patience():
    """These are of what is reckoned: no server in them is silent, but a starved one takes longer than gateways wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_server, "ANSWER_S_MAX", PATIENCE_S)
        patch.setattr(redis, "EXCHANGE_S_MAX", PATIENCE_S)
        yield


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The servers of each engine, started where they are asked for."""
    data = tmp_path_factory.mktemp("redis")
    with RedisServer(data / "one") as one, redis_cluster(data / "cluster") as cluster:
        yield {"memory": [], "sqlite": [], "redis": [one], "cluster": cluster}


@pytest.fixture(params=ENGINES)
async def rig(request, tmp_path, servers):
    rig = Rig(request.param, tmp_path, servers[request.param])
    await rig.vault.begin()
    yield rig
    await rig.close()


def free(answer):
    return answer.given[0].free


def rights(answer):
    return answer.given[0].rights


# ---------------------------------------------------------------- rights


async def test_rights_are_given_and_what_nobody_has_is_free(rig):
    """A lone gateway gets half at most; each answer says how the account stands."""
    one, two = Teller(rig.vault, "one"), Teller(rig.vault, "two")

    first = await one.says(claim(want=600))
    second = await two.says(claim(want=600))
    spent = await one.says(claim(rights=500, spent=450))

    assert first == Exchange((Given(500, free=500, others=0, wanted=False),), quiet=False)
    assert second == Exchange((Given(125, free=375, others=500, wanted=False),), quiet=False)
    assert spent == Exchange((Given(500, free=375, others=125, wanted=False),), quiet=False)
    assert await rig.vault.standings(TAG) == [Standing(ACME, 1_000, spent=450, leased=175, lost=0)]


async def test_what_is_needed_is_given_in_full_or_not_at_all(rig):
    """The last of a budget is given to whom it is enough for; for who lacks some it stays."""
    one, two = Teller(rig.vault, "one"), Teller(rig.vault, "two")
    await one.says(claim(want=0, need=990))

    assert (await two.says(claim(want=600, need=11))).given == (Given(0, free=10, others=990, wanted=False),)
    assert rights(await two.says(claim(want=600, need=10))) == 10


async def test_who_has_what_it_does_not_need_hears_that_somebody_lacks_it(rig):
    """It gives back, and the other is given what it needs; then nobody lacks anything."""
    one, two = Teller(rig.vault, "one"), Teller(rig.vault, "two")
    await one.says(claim(need=900))
    await two.says(claim(need=300))

    told = await one.says(claim(rights=900, spent=100))
    await one.says(claim(rights=100, spent=100))
    served = await two.says(claim(need=300))

    assert told.given[0].wanted
    assert rights(served) == 300
    assert not (await one.says(claim(rights=100, spent=100))).given[0].wanted


async def test_nobody_is_given_more_than_it_needs_while_another_lacks_something(rig):
    """For a while: who lacks something asks again soon, and who does not has left."""
    one, two = Teller(rig.vault, "one"), Teller(rig.vault, "two")
    await two.says(claim(need=1_001))

    assert rights(await one.says(claim(want=100, need=7))) == 7
    rig.clock.now_s += 2.1
    assert rights(await one.says(claim(rights=7, want=100, need=7))) == 107


async def test_a_gateways_numbers_are_absolute(rig):
    """An answer that was lost on its way gives nothing: the gateway says what it has, and the rest is free again."""
    one = Teller(rig.vault, "one")
    await one.says(claim(need=400))  # the answer is lost

    assert await one.says(claim()) == await one.says(claim())
    assert free(await one.says(claim())) == 1_000
    assert free(await one.says(claim(rights=300, spent=300))) == 700


async def test_racing_gateways_are_never_given_more_than_the_limit(rig):
    """Of fifty at once, so many have what they need as fit."""
    tellers = [Teller(rig.another(), f"g{i}") for i in range(12)]

    answers = await asyncio.gather(*(one.says(claim(need=150)) for one in tellers))

    assert sorted(map(rights, answers)) == [0] * 6 + [150] * 6
    for one in tellers:
        await one.vault.close()


async def test_one_exchange_tells_of_many_accounts(rig):
    """Each is answered in its place, whatever the names."""
    places = [Place(f"session:k{'é {}%'[i % 5]}/{i}", "micro-dollars", "total") for i in range(50)]
    one = Teller(rig.vault, "one")

    answer = await one.says(*(claim(need=i, place=place) for i, place in enumerate(places)))

    assert [given.rights for given in answer.given] == list(range(50))
    assert [one.place for one in await rig.vault.standings(TAG)] == sorted(places)


@pytest.mark.parametrize("name", ["", "}", "{}", "a{b}c", "org:with space", "org:%7B", "ø", "*", "\n"])
async def test_any_name_is_a_name(rig, name):
    """Of a tag, a scope or a gateway: none reaches another's accounts, or another slot's keys."""
    place = Place(name, "tokens", "total")
    for other in ("", "{", name + "}"):
        await Teller(rig.vault, "one").says(claim(need=1, place=place), tag=other + "x")

    answer = await Teller(rig.vault, name).says(claim(need=400, place=place), tag=name)

    assert answer == Exchange((Given(400, free=600, others=0, wanted=False),), quiet=False)
    assert [one.place for one in await rig.vault.standings(name)] == [place]
    assert [one.name for one in await rig.vault.heard(name)] == [name]
    assert name in await rig.vault.tags()


async def test_the_highest_amounts_are_exact(rig):
    """To the last unit, below 2^53; beyond it they are refused, a limit is none, and what is wanted is what can be."""
    one, two = Teller(rig.vault, "one"), Teller(rig.vault, "two")

    assert (await one.says(claim(AMOUNT_MAX - 1, need=AMOUNT_MAX - 2))).given[0][:2] == (AMOUNT_MAX - 2, 1)
    assert (await two.says(claim(AMOUNT_MAX - 1, need=1))).given[0][:3] == (1, 0, AMOUNT_MAX - 2)
    with pytest.raises(ValueError, match=str(AMOUNT_MAX)):
        await one.says(claim(rights=AMOUNT_MAX + 1))
    many = Place("org:many", "tokens", "total")
    assert rights(await one.says(claim(2**60, want=2**60, place=many))) == AMOUNT_MAX // 4
    assert [standing.limit for standing in await rig.vault.standings(TAG)] == [AMOUNT_MAX - 1, None]


# ---------------------------------------------------------------- limits


async def test_the_latest_word_on_a_limit_holds(rig):
    """Whoever says it; of the same moment, the last one. One that was lowered may leave less than nothing free."""
    one, two = Teller(rig.vault, "one"), Teller(rig.vault, "two")
    await one.says(claim(1_000, need=500))

    assert free(await two.says(claim(300, as_of=7))) == -200
    assert (await one.says(claim(1_000, rights=500, want=10, need=1))).given[0][:2] == (500, -200)
    assert free(await one.says(claim(800, rights=500, as_of=7))) == 300
    assert free(await two.says(claim(2_000, as_of=7.5))) == 1_500


async def test_who_does_not_know_a_limit_leaves_it_as_it_is(rig):
    """And says what it has spent all the same; also of one that the configuration declares."""
    one, two = Teller(rig.vault, "one"), Teller(rig.vault, "two")
    await one.says(claim(1_000, need=500))

    assert free(await two.says(claim(None, as_of=-1.0, rights=200, spent=200))) == 300
    assert (await rig.vault.standings(TAG))[0].limit == 1_000


async def test_an_account_without_a_limit_gives_what_is_wanted(rig):
    """Nothing is ever short of it."""
    one = Teller(rig.vault, "one")

    assert rights(await one.says(claim(None, want=10**9))) == 10**9
    assert [standing.limit for standing in await rig.vault.standings(TAG)] == [None]


# ---------------------------------------------------------------- who speaks


async def test_an_exchange_that_comes_after_a_newer_one_changes_nothing(rig):
    """Nor does one that comes twice."""
    one = Teller(rig.vault, "one")
    await one.says(claim(rights=100, spent=60))
    await one.says(claim(rights=100, spent=80))

    for number in (1, 2):
        late = await rig.vault.exchange(TAG, Gateway("one", 1, number), [claim(rights=100, spent=60, need=5)], True)
        assert isinstance(late, Stale)
    assert await rig.vault.standings(TAG) == [Standing(ACME, 1_000, spent=80, leased=20, lost=0)]


async def test_a_newer_start_of_a_gateway_fences_the_older(rig):
    """Its numbers begin anew; what the older one had is its own until it says otherwise."""
    old, new = Teller(rig.vault, "one", epoch=2**60), Teller(rig.vault, "one", epoch=2**60 + 1)
    for _ in range(3):
        await old.says(claim(rights=100, spent=60))

    assert free(await new.says(claim(rights=100, spent=100))) == 900
    assert isinstance(await old.says(claim(rights=100, spent=60)), Fenced)
    assert free(await new.says(claim(rights=100, spent=100))) == 900


async def test_a_copy_of_a_gateway_is_fenced(rig):
    """It has the same name and the same epoch; whoever of both is heard first goes on."""
    one, copy = Teller(rig.vault, "one", start="a}b c"), Teller(rig.vault, "one", start="d")
    await one.says(claim(need=100))
    copy.number = 7

    assert isinstance(await copy.says(claim(need=100)), Fenced)
    assert rights(await one.says(claim(rights=100, need=1))) == 101


async def test_who_knows_less_than_it_has_spent_is_fenced(rig):
    """Its books are an older copy: nothing of what it says is taken in, until it is written off."""
    user = Place("user:acme/alice", "tokens", "total")
    one, two = Teller(rig.vault, "one"), Teller(rig.vault, "two")
    await one.says(claim(rights=600, spent=500), claim(rights=600, spent=500, place=user))
    restored = Teller(rig.vault, "one", epoch=2)
    stands = await rig.vault.standings(TAG)

    refusal = await restored.says(claim(rights=700, spent=600), claim(rights=500, spent=499, need=1, place=user))

    assert isinstance(refusal, Fenced)
    assert "older copy" in refusal.why
    assert await rig.vault.standings(TAG) == stands
    assert rights(await one.says(claim(rights=600, spent=500, need=1))) == 601
    await rig.vault.write_off(TAG, "one")
    assert free(await two.says(claim())) == 399


async def test_corrections_lower_what_is_spent(rig):
    """Each account is heard of after one in its own time; without another one it does not fall again."""
    user = Place("user:acme/alice", "tokens", "total")
    one = Teller(rig.vault, "one")
    await one.says(claim(rights=500, spent=500), claim(rights=500, spent=500, place=user))

    assert free(await one.says(claim(rights=100, spent=100, corrected=3))) == 900
    assert free(await one.says(claim(rights=0, spent=0, corrected=3, place=user))) == 1_000
    assert isinstance(await one.says(claim(rights=99, spent=99, corrected=3)), Fenced)


async def test_what_is_spent_of_a_session_may_be_forgotten(rig):
    """A gateway's own ledger lets go of names that were not used for long, while others may use them."""
    session = Place("session:k/s", "tokens", "total")
    one = Teller(rig.vault, "one")
    await one.says(claim(rights=500, spent=500, place=session))

    assert free(await one.says(claim(rights=0, spent=0, place=session))) == 1_000


async def test_no_account_comes_twice_in_an_exchange(rig):
    """Which of both would be true?"""
    with pytest.raises(ValueError, match="two claims"):
        await Teller(rig.vault, "one").says(claim(spent=1), claim(spent=2))


async def test_what_a_dead_gateway_has_stays_its_own(rig):
    """Nobody is given it; it counts as lost, is not among what others may give back, and is not shared with."""
    one, two = Teller(rig.vault, "one"), Teller(rig.vault, "two")
    await one.says(claim(rights=600, spent=100))
    rig.clock.now_s += LEASE_S
    alive = await two.says(claim(want=200))
    rig.clock.now_s += 0.001
    dead = await two.says(claim(want=200))

    assert alive.given == (Given(100, free=300, others=500, wanted=False),)
    assert dead.given == (Given(200, free=200, others=0, wanted=False),)
    assert await rig.vault.standings(TAG) == [Standing(ACME, 1_000, spent=100, leased=700, lost=500)]
    assert await rig.vault.heard(TAG) == [Heard("one", LEASE_S + 0.001, False), Heard("two", 0.0, False)]
    assert (await one.says(claim(rights=100, spent=100))).given[0].free == 700


async def test_a_gateway_that_is_written_off_has_spent_all_it_had(rig):
    """In every account, for good; it may not speak any more, nor may a newer start of it."""
    other = Place("user:acme/alice", "tokens", "2026-11")
    one, two = Teller(rig.vault, "one"), Teller(rig.vault, "two")
    await one.says(claim(rights=600, spent=100), claim(rights=0, place=other))
    await two.says(claim(rights=100, spent=10))

    assert await rig.vault.write_off(TAG, "one") == 1
    assert await rig.vault.standings(TAG) == [
        Standing(ACME, 1_000, spent=610, leased=90, lost=0),
        Standing(other, 1_000, spent=0, leased=0, lost=0),
    ]
    assert free(await two.says(claim(rights=100, spent=10))) == 300
    assert isinstance(await one.says(claim(rights=600)), Fenced)
    assert isinstance(await Teller(rig.vault, "one", epoch=9).says(claim(rights=600)), Fenced)
    assert await rig.vault.heard(TAG) == [Heard("one", 0.0, True), Heard("two", 0.0, False)]
    assert await rig.vault.write_off(TAG, "one") == 0
    assert await rig.vault.write_off(TAG, "nobody") is None
    assert await rig.vault.write_off("no tag", "one") is None


async def test_a_gateway_is_written_off_in_however_many_accounts(rig):
    """More than one question to a server holds."""
    places = [Place(f"session:{i}", "tokens", "total") for i in range(450)]
    one = Teller(rig.vault, "one")
    await one.says(*(claim(rights=2, spent=1, place=place) for place in places))

    assert len(await rig.vault.standings(TAG)) == 450
    assert await rig.vault.write_off(TAG, "one") == 450
    assert {standing[2:] for standing in await rig.vault.standings(TAG)} == {(2, 0, 0)}


async def test_who_was_heard_of_lately_is_not_written_off_for_having_been_silent(rig):
    """To the millisecond, and nothing has changed; one that was written off before still is."""
    one = Teller(rig.vault, "one")
    await one.says(claim(rights=600, spent=100))
    stands = await rig.vault.standings(TAG)
    rig.clock.now_s += 59.999
    early = await rig.vault.write_off(TAG, "one", 60.0)
    after_early = await rig.vault.standings(TAG), await rig.vault.heard(TAG)
    rig.clock.now_s += 0.001

    assert early is None
    assert after_early == ([stands[0]._replace(lost=500)], [Heard("one", 59.999, False)])
    assert await rig.vault.write_off(TAG, "one", 60.0) == 1
    rig.clock.now_s += 7.0
    assert await rig.vault.write_off(TAG, "one", 3600.0) == 0
    assert [stood.spent for stood in await rig.vault.standings(TAG)] == [600]
    assert await rig.vault.heard(TAG) == [Heard("one", 7.0, True)]


async def test_who_was_written_off_is_forgotten_at_last(rig):
    """62 days after that, however silent it was before, by the next exchange of whomever. If it comes back it counts
    twice, and nothing is given twice."""
    total = Place("org:acme", "tokens", "total")
    one, two, other = (Teller(rig.vault, name) for name in ("one", "two", "other"))
    for teller in (one, other):
        await teller.says(claim(rights=100, spent=50, place=total))
    rig.clock.now_s += 2 * WINDOW_S_MAX
    await rig.vault.write_off(TAG, "one")
    rig.clock.now_s += WINDOW_S_MAX
    await two.says(claim(place=total))
    there = [heard.name for heard in await rig.vault.heard(TAG)]
    refused = await one.says(claim(rights=100, spent=50, place=total), known=True)
    rig.clock.now_s += 0.001
    back = await one.says(claim(rights=100, spent=50, place=total), known=True)
    await rig.vault.write_off(TAG, "one")
    rig.clock.now_s += WINDOW_S_MAX + 0.001
    await two.says(claim(place=total))

    assert there == ["one", "other", "two"]
    assert isinstance(refused, Fenced)
    assert free(back) == 1_000 - 100 - 100 - 100
    assert [heard.name for heard in await rig.vault.heard(TAG)] == ["other", "two"]  # nobody is forgotten unfenced
    assert [stood.spent for stood in await rig.vault.standings(TAG)] == [250]


async def test_more_gateways_than_can_be_looked_at_are_turned_away(rig, monkeypatch):
    """Until one that is gone was written off."""
    for engine in (account, redis):
        monkeypatch.setattr(engine, "GATEWAYS_MAX", 40)
    for i in range(40):
        await Teller(rig.vault, f"g{i}").says(claim())

    late = Teller(rig.vault, "late")
    refused = await late.says(claim(need=1))
    await rig.vault.write_off(TAG, "g0")

    assert type(refused) is Crowded
    assert "write-off" in refused.why
    assert rights(await late.says(claim(need=1))) == 1


# ---------------------------------------------------------------- loss


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_empty_vault_is_closed_until_an_operator_begins_it(engine, tmp_path, servers):
    """Once; and nothing has changed by having asked."""
    rig = Rig(engine, tmp_path, servers[engine])
    one = Teller(rig.vault, "one")

    closed = await one.says(claim(need=1))
    name = await rig.vault.begin()

    assert isinstance(closed, Closed)
    assert "begin" in closed.why
    assert rights(await one.says(claim(need=1))) == 1
    with pytest.raises(ValueError, match=name):
        await rig.vault.begin()
    await rig.close()


async def test_a_gateway_that_had_rights_does_not_begin_anew_where_there_are_none(rig):
    """They were lost, so that others' were, too; what it says is not taken for all."""
    closed = await Teller(rig.vault, "one").says(claim(rights=100), known=True)

    assert isinstance(closed, Closed)
    assert "--again" in closed.why
    assert await rig.vault.standings(TAG) == []


async def test_a_vault_that_begins_again_listens_before_it_gives(rig):
    """All that live have the time to say what they have; it is the same for who never had anything."""
    one, two, three = (Teller(rig.vault, name) for name in ("one", "two", "three"))
    await rig.vault.begin(again=True)

    new = await three.says(claim(need=500))
    living = await two.says(claim(rights=700, spent=600, need=1), known=True)
    rig.clock.now_s += LEASE_S
    after = await three.says(claim(need=500))

    assert new == Exchange((Given(0, free=1_000, others=0, wanted=False),), quiet=True)
    assert living == Exchange((Given(700, free=300, others=0, wanted=False),), quiet=True)
    assert after == Exchange((Given(0, free=300, others=100, wanted=False),), quiet=False)
    assert rights(await one.says(claim(need=300))) == 300


async def test_what_is_there_when_a_vault_begins_again_is_kept(rig):
    """It listens first, too: it may be older than what was answered."""
    one = Teller(rig.vault, "one")
    await one.says(claim(rights=300))
    await rig.vault.begin(again=True)

    assert await one.says(claim(rights=300, need=5)) == Exchange((Given(300, 700, 0, False),), quiet=True)
    rig.clock.now_s += LEASE_S
    assert rights(await one.says(claim(rights=300, need=5))) == 305


async def test_a_tag_that_comes_long_after_a_new_beginning_gives_at_once(rig):
    """Nobody that lives has not said by then what it had of it."""
    await rig.vault.begin(again=True)
    rig.clock.now_s += LEASE_S

    assert rights(await Teller(rig.vault, "one").says(claim(need=300))) == 300


async def test_another_server_listens_before_it_gives(rig):
    """What the one before had answered may be lost: nothing is given until all that live have said what they have."""
    one, two = Teller(rig.vault, "one"), Teller(rig.vault, "two")
    await one.says(claim(rights=100))
    rig.another_run()

    assert await two.says(claim(need=300)) == Exchange((Given(0, 900, 100, False),), quiet=True)
    assert free(await one.says(claim(rights=800))) == 200  # of which it had lost some
    rig.clock.now_s += LEASE_S - 0.001
    assert (await two.says(claim(need=100))).quiet
    rig.clock.now_s += 0.001
    assert await two.says(claim(need=200)) == Exchange((Given(200, 0, 800, False),), quiet=False)


@pytest.mark.parametrize("rig", ENGINES[1:], indirect=True)
async def test_accounts_of_the_past_go_away(rig):
    """Sessions and agents after 30 days, windows after 62, and what is in total stays. (Memory forgets all anyway.)"""
    places = [Place(scope, "tokens", window) for scope, window in (("session:k/s", "total"), ("u", "2026-11"))]
    places.append(Place("u", "tokens", "total"))
    one = Teller(rig.vault, "one")
    await one.says(*(claim(rights=5, place=place) for place in places))

    if rig.engine in ("redis", "cluster"):
        left = [rig.write("TTL", account_key(TAG, member_of(place))) for place in places]
        assert [round(left_s / 86_400) if left_s > 0 else left_s for left_s in left] == [30, 62, -1]
    if rig.engine == "sqlite":
        for days, there in ((29, 3), (1, 2), (32, 1), (400, 1)):
            rig.clock.now_s += days * 86_400
            assert len(await rig.vault.standings(TAG)) == there


# ---------------------------------------------------------------- all engines are one


NAMES = st.sampled_from(["a", "b", "c"])
AMOUNTS = st.integers(0, 60) | st.integers(0, 2_000) | st.integers(0, 2**50)
CLAIMS = st.builds(
    claim,
    st.none() | AMOUNTS | st.just(1_000),
    AMOUNTS,
    AMOUNTS,
    AMOUNTS,
    AMOUNTS,
    place=st.sampled_from([ACME, Place("session:k/s", "tokens", "total")]),
    as_of=st.sampled_from([0, 0, 0, 0.5, 1_700_000_000.123456, 1_700_000_000.123457]),
    corrected=st.integers(0, 3),
)
SAID = st.lists(CLAIMS, max_size=2, unique_by=lambda one: one.place)
STEPS = st.one_of(
    st.tuples(st.just("says"), NAMES, SAID, st.booleans()),
    st.tuples(st.just("says"), NAMES, SAID, st.just(False)),
    st.tuples(st.just("later"), st.sampled_from([0.001, 1.3, 2.0, 2.001, 5.0, 60.0])),
    st.tuples(st.just("restart"), NAMES, st.integers(-1, 1), st.sampled_from(["", "x"])),
    st.tuples(st.just("write off"), NAMES, st.sampled_from([0.0, 0.0, 1.3, 5.0])),
    st.tuples(st.just("another run")),
    st.tuples(st.just("begin again")),
)


async def played(rig, steps):
    """Every answer, and how all stands after each step."""
    await rig.vault.begin()
    tellers, told = {name: Teller(rig.vault, name) for name in "abc"}, []
    for what, *about in steps:
        if what == "says":
            answer = await tellers[about[0]].says(*about[1], known=about[2])
            told.append(answer)
        elif what == "later":
            rig.clock.now_s += about[0]
        elif what == "restart":
            tellers[about[0]] = Teller(rig.vault, about[0], tellers[about[0]].epoch + about[1], start=about[2])
        elif what == "write off":
            told.append(await rig.vault.write_off(TAG, *about))
        elif what == "another run" and await rig.vault.heard(TAG):
            rig.another_run()
        elif what == "begin again":
            await rig.vault.begin(again=True)
        told.append([await rig.vault.standings(TAG), await rig.vault.heard(TAG)])
    await rig.close()
    return told


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, max_size=25))
def test_python_and_lua_reckon_alike(servers, steps):
    """Whatever is said by whomever, in whatever order and at whatever time: the same answers, and the same accounts."""

    async def all_told():
        with tempfile.TemporaryDirectory() as data:
            rigs = [Rig(engine, Path(data), servers[engine]) for engine in ("memory", "redis", "sqlite")]
            for rig in rigs:
                rig.clock.now_s = rigs[0].clock.now_s
            return [await played(rig, steps) for rig in rigs]

    in_memory, in_redis, in_sqlite = asyncio.run(all_told())

    assert in_redis == in_memory
    assert in_sqlite == in_memory


HONEST = st.lists(
    st.tuples(NAMES, st.integers(0, 400), st.integers(0, 400), st.floats(0, 1), st.booleans(), st.booleans()),
    max_size=60,
)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["memory", "redis"])
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=HONEST)
def test_gateways_that_say_what_is_true_never_spend_more_than_the_limit(servers, engine, steps):
    """Each spends of what it has, gives back or keeps, loses answers, or hears of them; the sum is right throughout."""

    async def world():
        with tempfile.TemporaryDirectory() as data:
            rig = Rig(engine, Path(data), servers[engine])
            await rig.vault.begin()
            tellers = {name: Teller(rig.vault, name) for name in "abc"}
            has, used = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)
            for name, want, need, part, gives_back, loses in steps:
                used[name] += int((has[name] - used[name]) * part)
                if gives_back:
                    has[name] = used[name]
                said = claim(rights=has[name], spent=used[name], want=want, need=need)
                answer = await tellers[name].says(said)
                if not loses:
                    has[name] = answer.given[0].rights
                    assert answer.given[0].free + sum(has.values()) <= 1_000
                assert sum(has.values()) <= 1_000
                (standing,) = await rig.vault.standings(TAG)
                assert standing.spent == sum(used.values())
            await rig.close()

    asyncio.run(world())
