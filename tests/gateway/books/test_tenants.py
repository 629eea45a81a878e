"""Who pays: the limits of a request follow from its key, its session, its agent and itself."""

from gateway.books.tenants import RECORD, WITHIN_MAX, Tenant, tenant
from guards.budget import Limit, Line, Unit, Window
from guards.burn import OFF, Plan
from guards.scope import each_of

KEY, SESSION, WIDER = Limit(1_000), Limit(100), Limit(300)
HOURLY, TURN = Limit(50, Window.HOUR, Unit.OUTPUT), Limit(20, Window.TOTAL, Unit.MONEY)


def someone(**limits: list[Limit]) -> Tenant:
    """A key of alice's at acme. The names stand for scopes: own, org, and each of what is in them."""
    names = {
        "own": "key:key_1", "org": "org:acme", "session": "each session of key:key_1",
        "org_session": "each session of org:acme", "agent": "each agent of key:key_1", "turn": "each turn of key:key_1",
    }  # fmt: skip
    return tenant("key_1", "alice", "acme", None, {names[name]: found for name, found in limits.items()})


def test_a_session_and_an_agent_have_limits_of_their_own():
    """Under the key's name, so that nobody reaches another key's."""
    alice = someone(own=[KEY], session=[SESSION], agent=[HOURLY])

    lines = alice.within("s/1", ("planner",)).lines

    own = Line("key:key_1", KEY)
    assert lines == (own, ("session:key_1/s%2F1", SESSION), ("agent:key_1/planner", HOURLY))
    assert alice.within("s/1").lines == lines[:2]
    assert alice.lines == (own,)


def test_who_names_no_session_has_one_turn_s_worth_of_it():
    """A client cannot have more by saying less; nor can its agents be told from it, so they are under its key's."""
    alice = someone(session=[SESSION], agent=[HOURLY], turn=[TURN])

    one = alice.within(None)

    assert (one.lines, one.turn) == ((Line("key:key_1", RECORD),), (TURN, SESSION))
    assert alice.within("s").turn == (TURN,)
    assert one.limited
    assert one.pays
    assert not someone(session=[SESSION]).within("s").pays


def test_of_what_an_org_and_a_key_say_of_each_session_the_less_holds():
    """For each unit and window alone."""
    alice = someone(session=[WIDER, HOURLY], org_session=[SESSION])

    assert [line.limit for line in alice.within("s").lines[1:]] == [SESSION, HOURLY]


def test_without_such_limits_names_change_nothing():
    """No account for each session where nothing limits it."""
    alice = someone(own=[KEY])

    assert alice.within("s", ("a",)) is alice


def test_what_an_agent_spends_its_parents_spend_too_and_each_may_spend_less():
    """So a tree of agents cannot spend more than its root, and budgets come to an end on the way down."""
    alice = someone(own=[KEY], agent=[SESSION])

    lines = alice.within(None, ("planner", "search/web", "reader"), share=30).lines

    assert [(at, limit.amount) for at, limit in lines[1:]] == [
        ("agent:key_1/planner", 100),
        ("agent:key_1/planner/search%2Fweb", 30),
        ("agent:key_1/planner/search%2Fweb/reader", 9),
    ]
    assert alice.within(None, ("a",) * 8, share=50).lines[-1].limit.amount == 0


def test_names_are_remembered_and_no_more_of_them_than_so_many():
    """A client makes up its names: the last of them find their limits made, and memory stays bounded."""
    alice = someone(session=[SESSION])

    assert alice.within("s") is alice.within("s")
    for number in range(2 * WITHIN_MAX):
        assert alice.within(f"s{number}").lines[-1].scope == f"session:key_1/s{number}"
    assert len(alice._within) <= WITHIN_MAX


DAILY, MONTHLY = Limit(9, Window.DAY), Limit(99, Window.MONTH)
ORG, TEAM, MINE = "org:acme", "team:acme/search", "key:k"


def watched(limits, plans):
    """Whose hands each limit is in, of a key of a team of an org."""
    who = tenant("k", "alice", "acme", "search", limits, plans=plans)
    return [(one.scope, one.line) for one in who.breakers]


def test_a_plan_holds_for_all_within_its_scope():
    """Until a narrower one says otherwise; limits of other windows have no breaker."""
    limits = {ORG: [DAILY, Limit(5)], TEAM: [MONTHLY], MINE: [DAILY, Limit(5, Window.HOUR)]}
    everything = [(ORG, Line(ORG, DAILY)), (TEAM, Line(TEAM, MONTHLY)), (MINE, Line(MINE, DAILY))]

    assert watched(limits, {"": Plan()}) == watched(limits, {ORG: Plan()}) == everything
    assert watched(limits, {TEAM: Plan()}) == everything[1:]
    assert watched(limits, {"": Plan(), TEAM: OFF, MINE: Plan()}) == [everything[0], everything[2]]
    assert watched(limits, {ORG: OFF}) == []
    assert watched(limits, {}) == []


def test_a_key_is_watched_by_the_narrowest_limits_above_it():
    """Where it has none of its own; unless it is left out by name."""
    limits = {ORG: [DAILY], TEAM: [MONTHLY, DAILY]}
    above = [(ORG, Line(ORG, DAILY)), (TEAM, Line(TEAM, MONTHLY)), (TEAM, Line(TEAM, DAILY))]

    assert watched(limits, {ORG: Plan()}) == [*above, (MINE, Line(TEAM, MONTHLY)), (MINE, Line(TEAM, DAILY))]
    assert watched(limits, {ORG: Plan(), MINE: OFF}) == above


def test_a_session_changes_nothing_of_what_is_watched():
    """Its own limits have no breakers: clients make up their names."""
    limits = {ORG: [DAILY], each_of("session", ORG): [DAILY]}
    who = tenant("k", "alice", "acme", None, limits, plans={"": Plan()})

    assert who.within("s").breakers is who.breakers
