"""Replicas that are asked after their KV pages, and what follows."""

import asyncio
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.fleet.inspector import ABSENT_S, Inspector
from gateway.fleet.page_status import PATH, Plugin
from gateway.fleet.replica import Replica
from gateway.stream.leg_end import Cause, LegEnd
from guards.health import Health
from loadtests.stub_server import PAGES
from tests.gateway.fleet.test_replicas import DEAD, NONE, REFUSED, SILENT, World

ABSENT = LegEnd(Cause.REFUSED, "", 404)


def status(pages: int = 0, kind: str = "changed", where: str = "gate", **more: Any) -> LegEnd:
    """An answer of a plugin that found so many pages corrupt."""
    said = PAGES | {"corrupt": [{"kind": kind, "where": where, "pages": pages}]} | more
    return LegEnd(Cause.DONE, "", 200, json.dumps(said).encode())


class Ward(World):
    """Replicas of one model that are up, and who asks after their pages.

    statuses: what each answers; None of it: 404. told: of which replica, whether it is drained, and why.
    """

    def __init__(self, names: str = "ab", every_s: float = 5.0) -> None:
        super().__init__(*(Replica(name, model="m", health=Health(up=True, why="answers")) for name in names))
        self.statuses: dict[str, LegEnd] = {}
        self.told: list[tuple[str, bool, str]] = []
        self.inspector = Inspector(self.fleet.all(), self.ask, self, lambda: self.now_s, every_s)

    async def ask(self, name: str, path: str, body: bytes | None, timeout_s: float) -> LegEnd:
        if path != PATH or name in self.broken:
            return await super().ask(name, path, body, timeout_s)
        self.asked.append((name, path))
        return self.statuses.get(name, ABSENT)

    def drained(self, replica: Replica, why: str) -> None:
        self.told.append((replica.name, replica.drained, why))

    async def looks(self, name: str, *totals: int) -> Replica:
        """Look again and again, five seconds apart, and see these totals."""
        replica = self.fleet.named(name)
        for total in totals:
            self.statuses[name] = status(total)
            await self.inspector.look(replica)
            self.now_s += 5.0
        return replica

    async def rounds(self, seconds: float) -> list[str]:
        """Let it run for so long; who was asked."""
        self.asked.clear()
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            task = asyncio.create_task(self.inspector.run())
            for _ in range(12):
                await asyncio.sleep(0)
            task.cancel()
            self.now_s += 5.0
        return [name for name, path in self.asked if path == PATH]


async def test_a_replica_whose_pages_go_bad_gets_no_new_requests():
    """Others do; it is told once, with the reason."""
    ward = Ward()

    before = ward.fleet.pick("m", NONE)
    await ward.looks("a", 0, 4, 11, 30)

    assert (before, ward.fleet.pick("m", NONE)) == ("a", "b")
    assert ward.told == [("a", True, "11 corrupt pages in 600 s")]
    assert ward.fleet.all()[0].health.up


async def test_a_drained_replica_is_in_no_race_and_stands_in_for_nobody_who_waits():
    """Neither for a second leg, nor for a request that waits for room, nor counted where one could go."""
    ward = Ward()
    await ward.looks("b", 0, 11)

    assert ward.fleet.second("m", frozenset("a")) is None
    assert ward.fleet.with_room("m", None, lambda name: name == "b") is None
    assert [one.name for one in ward.fleet.up("m")] == ["a"]


async def test_the_last_one_of_a_model_is_asked_however_drained_it_is():
    """Where the others are down, or are drained as well; and the gateway is ready."""
    ward = Ward()
    await ward.looks("a", 0, 11)

    ward.health["b"] = DEAD
    await ward.fleet.probe("b")
    alone = ward.fleet.pick("m", NONE), ward.fleet.with_room("m", None, lambda name: True), ward.fleet.not_ready()
    failed = ward.fleet.pick("m", frozenset("b"))

    assert (alone, failed) == (("a", "a", []), "a")

    both = Ward()
    await both.looks("a", 0, 11)
    await both.looks("b", 0, 11)
    assert both.fleet.pick("m", NONE) == "a"
    assert len(both.fleet.up("m")) == 2


async def test_a_replica_that_hangs_is_ejected_in_favour_of_a_drained_one():
    """The latter computes."""
    ward = Ward()
    await ward.looks("b", 0, 11)

    assert await ward.fleet._others(ward.fleet.named("a"))


async def test_a_new_engine_brings_a_replica_back():
    """Its totals begin anew; told with the reason."""
    ward = Ward()
    await ward.looks("a", 0, 11, 11, 0)

    assert ward.fleet.pick("m", NONE) == "a"
    assert ward.told[-1] == ("a", False, "its engine was started anew")


@pytest.mark.parametrize("answer", [ABSENT, SILENT, REFUSED, LegEnd(Cause.FAILED, "", 500), LegEnd(Cause.PROTOCOL)])
async def test_saying_nothing_brings_no_replica_back(answer):
    """Nor a plugin that is gone: nobody says that the memory is well."""
    ward = Ward()
    replica = await ward.looks("a", 0, 11)
    ward.statuses["a"] = answer

    await ward.inspector.look(replica)

    assert replica.drained
    assert len(ward.told) == 1


async def test_an_operator_brings_a_replica_back():
    """Once; and it is counted from there."""
    ward = Ward()
    replica = await ward.looks("a", 0, 11)

    undone = ward.inspector.undrain("a"), ward.inspector.undrain("a"), ward.inspector.undrain("b")
    await ward.looks("a", 20)

    assert undone == (True, False, False)
    assert ward.told[-1] == ("a", False, "an operator said so")
    assert not replica.drained
    with pytest.raises(KeyError):
        ward.inspector.undrain("nobody")


async def test_a_new_engine_does_not_bring_back_what_an_operator_drains():
    """Nor is it told so: that its pages are well again is seen, and it stays drained."""
    ward = Ward()
    replica = await ward.looks("a", 0, 11)
    replica.leaving = True
    both = replica.why_drained

    await ward.looks("a", 0)

    assert both == "an operator drains it; 11 corrupt pages in 600 s"
    assert (replica.drained, replica.why_drained) == (True, "an operator drains it")
    assert len(ward.told) == 1


PLUGINS = [
    (ABSENT, Plugin.NONE), (status(), Plugin.TOLD), (SILENT, Plugin.UNASKED), (REFUSED, Plugin.UNASKED),
    (LegEnd(Cause.REFUSED, "", 401), Plugin.UNREADABLE), (LegEnd(Cause.PROTOCOL, "too long"), Plugin.UNREADABLE),
    (LegEnd(Cause.DONE, "", 200, b"<html>"), Plugin.UNREADABLE), (status()._replace(status=206), Plugin.UNREADABLE),
    (status()._replace(status=503), Plugin.UNASKED),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "plugin"), PLUGINS)
async def test_what_comes_of_an_answer(answer, plugin):
    """No plugin is no fault; what cannot be read is told; silence says nothing. None of it takes a server out."""
    ward = Ward()
    ward.statuses["a"] = answer
    replica = ward.fleet.named("a")

    await ward.inspector.look(replica)

    assert (replica.pages.plugin, replica.health.up, replica.drained) == (plugin, True, False)
    assert (replica.pages.status is not None) == (plugin is Plugin.TOLD)


async def test_a_status_that_cannot_be_read_any_more_is_kept_with_its_age():
    """And one that is gone is not."""
    ward = Ward("a")
    replica = await ward.looks("a", 3)
    ward.statuses["a"] = LegEnd(Cause.PROTOCOL)
    await ward.inspector.look(replica)
    kept = replica.pages.status
    ward.statuses["a"] = ABSENT
    await ward.inspector.look(replica)

    assert kept is not None
    assert kept.at_s == 0.0
    assert replica.pages.status is None


async def test_a_replica_without_the_plugin_is_asked_seldom():
    """One that has it each time; one without it once a minute, or at once after it was down: it may have it now."""
    ward = Ward()
    ward.statuses["a"] = status()

    asked = await ward.rounds(ABSENT_S)
    again = await ward.rounds(ABSENT_S + 5.0)
    ward.fleet.named("b").since_s = ward.now_s
    back = await ward.rounds(5.0)

    assert (asked.count("a"), asked.count("b")) == (12, 1)
    assert (again.count("a"), again.count("b")) == (13, 2)
    assert back == ["a", "b"]


async def test_one_that_came_up_is_asked_at_once():
    """Not when the round has come again: what it continues must be known when somebody needs it."""
    ward = Ward(every_s=3600.0)
    ward.statuses["a"] = status()
    first, later = await ward.rounds(5.0), await ward.rounds(5.0)
    ward.fleet.named("a").since_s = ward.now_s
    back = await ward.rounds(5.0)

    assert (first, later, back) == (["a", "b"], [], ["a"])
    assert ward.fleet.named("a").pages.fresh_s > 2 * 3600.0


async def test_one_that_is_down_or_cannot_be_asked_keeps_nobody_from_being_asked():
    """The first is not asked at all; a bug is logged, and the others are asked."""
    ward = Ward("abc")
    ward.statuses["c"] = status(2)
    ward.fleet.named("a").health = Health(up=False, why="gone")
    ward.broken.add("b")

    task = asyncio.create_task(ward.inspector.run())
    with capture_logs() as logs:
        for _ in range(12):
            await asyncio.sleep(0)

    assert task.cancel()  # it goes on
    assert [(log["event"], log["replica"]) for log in logs] == [("inspector.fault", "b")]
    assert ("a", PATH) not in ward.asked
    assert ward.fleet.named("a").pages.plugin is ward.fleet.named("b").pages.plugin is Plugin.UNASKED
    assert ward.fleet.named("c").pages.plugin is Plugin.TOLD


async def test_nobody_is_asked_where_that_is_switched_off():
    """0 seconds: never."""
    assert await Ward(every_s=0.0).rounds(10.0) == []
