"""Replicas of a model that are asked what they are like."""

import asyncio
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.fleet.heirs import strangers
from gateway.fleet.kin import AGAIN_S, RENDER, Kin
from gateway.fleet.page_status import Pages, PageStatus, Plugin, read
from gateway.fleet.replica import Replica
from gateway.stream.leg_end import Cause, LegEnd
from guards.health import Health
from guards.kinship import UNKNOWN
from loadtests.stub_server import PAGES
from tests.gateway.fleet.test_replicas import REFUSED, SILENT

ABSENT = LegEnd(Cause.REFUSED, "", 404)
BAD = LegEnd(Cause.REFUSED, "", 400)
NO_RENDER = LegEnd(Cause.REFUSED, "", 403)


def said(value: Any) -> LegEnd:
    return LegEnd(Cause.DONE, "", 200, json.dumps(value).encode())


def tokens(*ids: int) -> LegEnd:
    return said({"count": len(ids), "tokens": ids})


def render(**params: Any) -> LegEnd:
    return said([{"sampling_params": params}])


def plugin(**defaults: float) -> PageStatus | None:
    """What it says of an engine with these sampling defaults."""
    return read(json.dumps(PAGES | {"sampling_defaults": defaults}).encode(), 0.0)


class Family:
    """Replicas of one model that are up. answers: of each, by path, a chat's under "chat"; what is not there is 404."""

    def __init__(self, names: str = "abc") -> None:
        self.replicas = [Replica(name, model="m", health=Health(up=True, why="answers")) for name in names]
        usual = {"/tokenize": tokens(1, 2), "chat": tokens(9, 1, 2), RENDER: render(temperature=0.6, top_k=-1)}
        self.answers: dict[str, dict[str, LegEnd]] = {name: dict(usual) for name in names}
        self.asked: list[str] = []
        self.told: list[tuple[str, tuple[str, ...]]] = []
        self.now_s = 1.0
        self.kin = Kin(self.replicas, self.ask, self, lambda: self.now_s)

    async def ask(self, name: str, path: str, body: bytes | None, timeout_s: float) -> LegEnd:
        assert body is not None
        self.asked.append(name)
        which = "chat" if "messages" in json.loads(body) else path
        return self.answers[name].get(which, ABSENT)

    def parted(self, replica: Replica, model: str) -> None:
        self.told.append((replica.name, replica.apart[model]))

    async def look(self, pass_s: float = AGAIN_S) -> dict[str, tuple[str, ...]]:
        """Look; who is apart then."""
        await self.kin.look("m")
        self.now_s += pass_s
        return {one.name: one.apart["m"] for one in self.replicas if one.apart.get("m")}


@pytest.mark.parametrize(
    ("which", "other", "what"),
    [
        ("/tokenize", tokens(1, 3), "tokenizer"),
        ("chat", tokens(8, 1, 2), "chat template"),
        ("chat", BAD, "chat template"),
        (RENDER, render(temperature=0.7), "sampling defaults"),
        (RENDER, render(temperature=0.6, top_k=20), "sampling defaults"),
    ],
)
async def test_one_that_differs_is_apart_until_it_does_not(which, other, what):
    """It is told once each."""
    family = Family()
    usual, family.answers["a"][which] = family.answers["a"][which], other

    first, second = await family.look(), await family.look()
    family.answers["a"][which] = usual

    assert first == second == {"a": (what,)}
    assert await family.look() == {}
    assert family.told == [("a", (what,)), ("a", ())]


@pytest.mark.parametrize("answer", [ABSENT, NO_RENDER, SILENT, REFUSED, said("nothing"), LegEnd(Cause.FAILED, "", 503)])
@pytest.mark.parametrize("which", ["/tokenize", "chat", RENDER])
async def test_who_does_not_tell_is_not_apart(answer, which):
    """Whatever the reason is."""
    family = Family()
    family.answers["b"][which] = answer

    assert await family.look() == {}
    assert family.told == []


@pytest.mark.parametrize("anew", [False, True])
async def test_what_is_known_of_a_server_that_is_too_busy_to_answer_stays(anew):
    """Until its engine was started anew: then nobody knows."""
    family = Family()
    family.answers["b"]["chat"] = tokens(8)
    await family.look()
    family.answers["b"]["chat"] = SILENT
    if anew:
        family.replicas[1].since_s = family.now_s

    assert await family.look() == ({} if anew else {"b": ("chat template",)})


async def test_what_says_the_same_in_other_words_is_the_same():
    """The plugin names only what is not vLLM's own; a route that tells of all names no top_k as 0 or as -1."""
    family = Family()
    family.answers["a"][RENDER] = render(temperature=0.6, top_p=1, top_k=0, min_p=0.0, max_tokens=1)
    family.answers["b"][RENDER] = NO_RENDER
    family.replicas[1].pages.status = plugin(temperature=0.6)

    assert await family.look() == {}
    assert len({one.traits["m"].sampling for one in family.replicas}) == 1
    family.replicas[1].pages.status = plugin(top_p=0.5)
    assert await family.look() == {"b": ("sampling defaults",)}


async def test_all_are_asked_when_one_comes_up_or_has_other_weights_and_not_otherwise():
    """At the start; not while nothing changes; at a recovery, at another fingerprint, and after a while anyway."""
    family = Family("ab")
    asked = []
    for change in ("start", "nothing", "up", "nothing", "weights", "nothing"):
        family.asked.clear()
        if change == "up":
            family.replicas[1].since_s = family.now_s - 0.5
        elif change == "weights":
            family.replicas[0].pages.status = read(json.dumps(PAGES).encode(), 0.0)
        await family.look(1.0)
        asked.append((family.asked.count("a"), family.asked.count("b")))

    assert asked[1::2] == [(0, 0)] * 3
    assert asked[0::2] == [(3, 3), (3, 3), (3, 3)]
    family.now_s += AGAIN_S
    await family.look()
    assert len(family.asked) == 6


async def test_one_alone_and_one_that_is_down_are_not_asked():
    """There is nothing to compare; who is down is compared when it comes back."""
    family = Family("ab")
    family.replicas[1].health = Health(up=False, why="gone")

    await family.look()

    assert family.asked == []
    assert family.replicas[0].traits.get("m", UNKNOWN) == UNKNOWN


async def test_a_template_that_refuses_a_systems_message_is_asked_without():
    """Four questions; and it is compared by the rest."""
    family = Family("ab")
    plain = family.ask

    async def ask(name: str, path: str, body: bytes | None, timeout_s: float) -> LegEnd:
        assert body is not None
        if b'"system"' in body:
            return BAD
        return await plain(name, path, body, timeout_s)

    family.kin = Kin(family.replicas, ask, family, lambda: family.now_s)
    family.answers["b"]["chat"] = tokens(7)

    assert await family.look() == {"b": ("chat template",)}


async def test_what_goes_wrong_does_not_end_it():
    """It is said, and asked again."""
    family = Family("ab")

    async def ask(*_: Any) -> LegEnd:
        raise RuntimeError("a bug")

    family.kin = Kin(family.replicas, ask, family, lambda: family.now_s)
    with capture_logs() as logs:
        task = asyncio.create_task(family.kin.run())
        for _ in range(12):
            await asyncio.sleep(0)
        running = not task.done()
        task.cancel()

    assert running
    assert [log["event"] for log in logs] == ["kin.fault"]


OTHER = "fingerprint (weights, configuration or layout)"
UNTOLD = "fingerprint, or none that is known"


def tells(replica: Replica, fingerprint: str, at_s: float, *, bound: bool = True) -> None:
    """Its plugin has told that fingerprint then."""
    replica.bound = bound
    replica.pages.plugin, replica.pages.fresh_s = Plugin.TOLD, 30.0
    replica.pages.status = read(json.dumps(PAGES | {"fingerprint": fingerprint}).encode(), at_s)


@pytest.mark.parametrize("bound", [False, True])
def test_a_bound_stream_goes_on_only_under_its_own_fingerprint(bound):
    """And where that is known; else at whoever is alike, as fingerprints are then held against nobody."""
    family = Family("abc")
    for one, fingerprint in zip(family.replicas, ("aa", "bb", ""), strict=True):
        tells(one, fingerprint, 100.0, bound=bound)

    found = strangers(family.replicas, "m", [family.replicas[0].origin("m", 100.0)], 100.0)

    assert found == ({"b": (OTHER,), "c": (UNTOLD,)} if bound else {})


def has_no_plugin(pages: Pages) -> None:
    pages.plugin, pages.status = Plugin.NONE, None


def is_unreadable(pages: Pages) -> None:
    pages.plugin = Plugin.UNREADABLE


def has_not_told_of_one_engine(pages: Pages) -> None:
    engines = [PAGES | {"fingerprint": one} for one in ("aa", "")]
    pages.status = read(json.dumps({"engines": engines}).encode(), 100.0)


@pytest.mark.parametrize("what", [has_no_plugin, is_unreadable, has_not_told_of_one_engine, None])
@pytest.mark.parametrize("of", ["origin", "heir"])
def test_a_fingerprint_that_is_not_known_is_nobodys(what, of):
    """Not asked yet, without the plugin, unreadable, of some engines only: neither to go on there, nor from there."""
    family = Family("ab")
    here, there = family.replicas
    tells(here, "aa", 100.0)
    tells(there, "aa", 100.0)
    odd = here if of == "origin" else there
    if what is None:
        odd.pages = Pages()
    else:
        what(odd.pages)

    found = strangers([there], "m", [here.origin("m", 100.0)], 100.0)

    assert found == {"b": (UNTOLD,)}


@pytest.mark.parametrize(
    ("told_s", "since_s", "now_s", "known"),
    [(100.0, 0.0, 130.0, True), (100.0, 0.0, 130.1, False), (100.0, 100.5, 101.0, False), (100.0, 100.0, 101.0, True)],
)
def test_a_bound_stream_goes_on_only_where_the_fingerprint_was_told_lately(told_s, since_s, now_s, known):
    """And since that server came up: before that it was perhaps another one."""
    here, there = Family("ab").replicas
    tells(here, "aa", now_s)
    tells(there, "aa", told_s)
    there.since_s = since_s

    assert strangers([there], "m", [here.origin("m", now_s)], now_s) == ({} if known else {"b": (UNTOLD,)})


def test_a_stream_is_bound_to_what_its_server_was_when_it_began():
    """A server that was started anew with other weights, or is down by now, says nothing of the stream that it lost."""
    here, old, new = Family("abc").replicas
    tells(here, "aa", 100.0)
    tells(old, "aa", 110.0)
    tells(new, "bb", 110.0)
    began = here.bond(100.0)
    here.since_s = 110.0
    lost = [here.origin("m", 110.0, began)]
    tells(here, "bb", 110.0)
    anew = [here.origin("m", 110.0, began)]

    assert strangers([old, new], "m", lost, 110.0) == strangers([old, new], "m", anew, 110.0) == {"c": (OTHER,)}
    tells(here, "aa", 110.0)
    assert strangers([old], "m", [here.origin("m", 110.0, frozenset())], 110.0) == {"b": (UNTOLD,)}
