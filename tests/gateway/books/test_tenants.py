"""Who pays: the limits of a request follow from its key, its session, its agent and itself."""

from gateway.books.tenants import RECORD, WITHIN_MAX, Tenant, tenant
from guards.budget import Limit, Line, Unit, Window

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
