"""Which session lives where, of which generation, and what its servers are told."""

import json
from typing import Any

from gateway.books.tenants import Tenant
from gateway.fleet.listener import Listener
from gateway.fleet.page_status import PageStatus, Plugin, Store
from gateway.fleet.pulse import Pulse
from gateway.fleet.replica import Replica
from gateway.fleet.replicas import Care, Fleet
from gateway.homes import FAILOVER, PLANNED, RACE, RENEWED_MS, TURN, Homes, Lodger
from gateway.stream.call import Call
from guards.health import Health
from guards.kinship import Traits
from tests.gateway.stream.fakes import call_for

UP, DOWN = Health(up=True, why="answers"), Health(up=False, why="refuses")
BODY = b'{"model":"tiny"}'
STORE = Store("lmdb", 0.0, {})


def status(fingerprint: str = "aa", store: Store | None = STORE) -> PageStatus:
    nothing: dict[Any, int] = {}
    return PageStatus(0.0, 1, True, (), (), (fingerprint,), nothing, {}, {}, 0, None, None, 0, store=store)


def replica(name: str, fingerprint: str = "aa", store: Store | None = STORE) -> Replica:
    made = Replica(name, model="tiny", health=UP, pulse=Pulse())
    made.pages.plugin, made.pages.status = Plugin.TOLD, status(fingerprint, store)
    return made


async def nobody(*asked: Any) -> Any:
    raise AssertionError("nothing is asked")


class Town:
    """Homes over replicas; `moves` notes what is heard."""

    def __init__(self, *replicas: Replica, **options: Any) -> None:
        self.now_ms, self.moves = 1_000_000, list[tuple[str, str | None, str, bool | None]]()
        self.fleet = Fleet(list(replicas), nobody, Listener(), Care(60.0, 1.0), lambda: 0.0)
        self.homes = Homes(self.fleet, b"secret", self, lambda: 0.0, lambda: self.now_ms, **options)

    def session_moved(self, lodger: Lodger, was: str, why: str, same: bool | None) -> None:
        self.moves.append((was, lodger.replica, why, same))

    def enter(self, session: str = "s", key: str = "k") -> tuple[Call, Lodger]:
        call = call_for()
        call.session = session
        lodger = self.homes.enter(call, Tenant(key, "user"))
        assert lodger is not None
        return call, lodger

    def turn(self, at: str, session: str = "s", key: str = "k", why: str = TURN) -> tuple[str, int]:
        """A whole turn there; the name and the generation that the server is told."""
        call, lodger = self.enter(session, key)
        told = marks(self.homes.marked(lodger, call, at, BODY, why).body)
        self.homes.leave(lodger, call)
        return told


def marks(body: bytes) -> tuple[str, int]:
    params = json.loads(body)["kv_transfer_params"]
    return params["holdfast_session"], params["holdfast_generation"]


def test_a_name_tells_apart_keys_and_sessions_and_says_neither():
    """And it is the same with the same secret, in another process, too."""
    town, other = Town(replica("a")), Town(replica("a"))

    names = [town.turn("a", session, key)[0] for session in ("s", "t") for key in ("k", "l")]

    assert len(set(names)) == 4
    assert other.turn("a", "t", "l")[0] == names[3]
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in names)


def test_a_generation_stays_while_a_session_does_and_grows_with_each_move():
    """Also where the clock stands still, or goes back."""
    town = Town(replica("a"), replica("b"))

    found = [town.turn("a")[1], town.turn("a")[1], town.turn("b")[1]]
    town.now_ms -= 500_000
    found += [town.turn("a")[1], town.turn("a")[1], town.turn("b")[1]]

    assert found == sorted(found)
    assert (found[0], found[3]) == (found[1], found[4])
    assert len(set(found)) == 4
    assert [(was, to, why) for was, to, why, _ in town.moves] == [("a", "b", TURN), ("b", "a", TURN), ("a", "b", TURN)]


def test_a_gateway_that_knows_nothing_begins_above_what_another_one_said():
    """After a restart, or beside it: generations are times."""
    before, after = Town(replica("a")), Town(replica("a"))
    after.now_ms = before.now_ms + 60_000

    assert after.turn("a")[1] > before.turn("a")[1]


def test_an_old_generation_is_renewed_with_a_turn_but_not_under_a_stream_that_runs():
    """So a second gateway, or worker, that sends the same session there is fenced for a turn at most."""
    town = Town(replica("a"))
    first = town.turn("a")[1]
    town.now_ms += RENEWED_MS + 1
    second = town.turn("a")[1]
    town.now_ms += RENEWED_MS - 1
    third = town.turn("a")[1]
    call, lodger = town.enter()
    town.now_ms += RENEWED_MS
    beside = town.turn("a")[1]
    town.homes.leave(lodger, call)

    assert second > first
    assert (third, beside) == (second, second)
    assert town.moves == []


def test_a_request_that_goes_elsewhere_while_others_run_at_home_is_a_guest():
    """It has the session's name and generation, and nothing of the others' is fenced."""
    town = Town(replica("a"), replica("b"))
    call, lodger = town.enter()
    mine = marks(town.homes.marked(lodger, call, "a", BODY, TURN).body)
    guest = town.turn("b")

    assert guest == mine
    assert (lodger.replica, town.moves) == ("a", [])

    lost = marks(town.homes.marked(lodger, call, "b", BODY, FAILOVER, "a").body)

    assert lost[1] > mine[1]
    assert (lodger.replica, town.moves) == ("b", [("a", "b", FAILOVER, True)])


def test_a_race_is_of_a_newer_generation_and_moves_the_session_only_if_it_is_won():
    """Who has lost it is below the one that won, and after a lost race the next leg at home is above."""
    town = Town(replica("a"), replica("b"))
    call, lodger = town.enter()
    first = marks(town.homes.marked(lodger, call, "a", BODY, TURN).body)[1]
    raced = marks(town.homes.marked(lodger, call, "b", BODY, RACE).body)[1]
    after_loss = town.turn("a")[1]
    assert first < raced < after_loss
    assert lodger.replica == "a"

    won = marks(town.homes.marked(lodger, call, "b", BODY, RACE).body)[1]
    town.homes.won(lodger, "b")
    later = town.turn("b")[1]

    assert after_loss < won == later  # else the next request there would fence the stream that has won
    assert town.moves == [("a", "b", RACE, True)]


def test_only_servers_with_a_page_store_are_told():
    """Without a plugin, or without a store, a body stays as it is."""
    town = Town(replica("a", store=None), Replica("b", model="tiny", health=UP, pulse=Pulse()))
    call, lodger = town.enter()

    assert town.homes.marked(lodger, call, "a", BODY, TURN).body == BODY
    assert town.homes.marked(lodger, call, "b", BODY, TURN) == (BODY, "a")


def test_a_session_whose_server_is_gone_goes_where_its_pages_can_be_used():
    """To one of the same fingerprint before others, first of all to one that keeps them loaded; to none unlike it."""
    a, odd, like, far = replica("a"), replica("odd", "bb"), replica("like"), replica("far")
    for one in (a, odd, like):
        one.traits["tiny"] = Traits("t", "c", "s")
    far.traits["tiny"] = Traits("t", "other", "s")
    like.tokens = 10_000
    town = Town(a, odd, like, far)
    town.turn("a")

    at_home = town.enter()[0].home
    a.health = DOWN
    without = town.enter()[0].home
    like.leaving = True
    unlike = town.enter()[0].home
    odd.health = DOWN
    nowhere = town.enter()[0].home

    assert (at_home, without, unlike, nowhere) == ("a", "like", "odd", None)

    like.leaving, odd.health = False, UP
    second = replica("second")
    town = Town(replica("a"), second, like)
    _, lodger = town.enter()
    lodger.replica, lodger.standby, lodger.origin = "a", "like", town.fleet.named("a").origin("tiny", 0.0)
    town.fleet.named("a").health = DOWN
    assert town.enter()[0].home == "like"


def test_where_sessions_are_not_to_stay_only_an_operators_word_counts():
    """`routing: {sessions: false}`."""
    town = Town(replica("a"), sticky=False)
    town.turn("a")
    before = town.enter()[0].home
    (lodger,) = town.homes.find("s")
    lodger.pinned = True

    assert (before, town.enter()[0].home) == (None, "a")


def test_so_many_are_remembered_those_used_last_and_all_that_run():
    """Clients name as many as they like."""
    town = Town(replica("a"), sessions_max=3)
    call, running = town.enter("first")
    for number in range(5):
        town.turn("a", f"s{number}")
    names = [one.session for one in town.homes]
    town.homes.leave(running, call)
    town.turn("a", "last")

    assert names == ["first", "s3", "s4"]
    assert [one.session for one in town.homes] == ["s3", "s4", "last"]


def test_who_lives_where_is_counted():
    """With those whose pages are loaded beside."""
    town = Town(replica("a"), replica("b"))
    town.turn("a", "s")
    town.turn("a", "t")
    town.homes.find("t")[0].standby = "b"

    assert town.homes.counts() == {"a": (2, 0), "b": (0, 1)}


def test_a_session_is_found_by_its_clients_word_of_one_key_or_of_all():
    """Each model that it was asked of is one."""
    town = Town(replica("a"))
    town.turn("a", "s", "k")
    town.turn("a", "s", "l")
    town.turn("a", "t", "k")

    assert sorted(one.key_id for one in town.homes.find("s")) == ["k", "l"]
    assert [one.key_id for one in town.homes.find("s", "l")] == ["l"]
    assert town.homes.find("s", user="nobody") == []


def test_a_planned_move_to_its_standby_takes_that_role_from_it():
    """It is its home now; nobody stands by."""
    town = Town(replica("a"), replica("b"))
    town.turn("a")
    (lodger,) = town.homes.find("s")
    lodger.standby, lodger.warmed = "b", 100
    town.homes.settle(lodger, town.fleet.named("b"), PLANNED)

    assert (lodger.replica, lodger.standby, lodger.warmed) == ("b", None, 0)
