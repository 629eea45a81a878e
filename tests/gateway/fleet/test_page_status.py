"""What a plugin says of KV pages, read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.page_status import COUNT_MAX, Pages, Plugin, read
from guards.continuing import Continues
from loadtests.stub_server import PAGES


def said(**more: Any) -> bytes:
    """An answer."""
    return json.dumps(PAGES | more).encode()


def bad(kind: str, where: str, pages: int) -> dict[str, Any]:
    return {"kind": kind, "where": where, "pages": pages}


def test_all_of_a_status_is_read():
    """Also what nobody acts on; and what nobody knows yet is passed over."""
    found = read(
        said(
            unprotected=["async-scheduling"],
            corrupt=[bad("changed", "gate", 3)],
            pages={"resident": 7, "sealed": 9, "melted": "no number"},
            weights={"changes": 2, "cycle_s": 60},
            requests={"recomputed": 4, "aborted": 1},
            chains_broken=5,
            news={"anything": [1]},
        ),
        7.0,
    )

    assert found is not None
    assert (found.at_s, found.engines, found.protected, found.unprotected) == (7.0, 1, True, ("async-scheduling",))
    assert (found.versions, found.fingerprints) == (("0.1.0",), ("3fa9c1d2" * 8,))
    assert found.corrupt == {("changed", "gate"): 3}
    assert (found.pages["resident"], found.pages["sealed"], found.pages["evicted"]) == (7, 9, 0)
    assert (found.requests, found.chains_broken) == ({"recomputed": 4, "aborted": 1}, 5)
    assert (found.scrub_s, found.weights_s, found.weights_changed) == (1.25, 60.0, 2)


STORE = {"kind": "lmdb", "queued_pages": 3, "lag_s": 0.5, "saved": 10, "fenced": 1}


@pytest.mark.parametrize(
    ("stores", "kind", "lag_s", "queued"),
    [
        ([STORE], "lmdb", 0.5, 3),
        ([STORE, STORE | {"kind": "redis", "lag_s": 2.0, "news": 1}], "lmdb+redis", 2.0, 6),
    ],
)
def test_the_page_store_of_all_engines_is_one(stores, kind, lag_s, queued):
    """Counts are sums, the lag is the longest."""
    found = read(json.dumps({"engines": [PAGES | {"store": one} for one in stores]}).encode(), 0.0)

    assert found is not None
    assert found.store is not None
    assert (found.store.kind, found.store.lag_s, found.store.counts["queued_pages"]) == (kind, lag_s, queued)
    assert found.store.counts["fenced"] == len(stores)


@pytest.mark.parametrize("stores", [[None], [STORE, None], []])
def test_a_server_one_engine_of_which_keeps_nothing_outside_has_no_page_store(stores):
    """Nor one that says nothing of it."""
    engines = [PAGES | {"store": one} for one in stores] or [PAGES]
    found = read(json.dumps({"engines": engines}).encode(), 0.0)

    assert found is not None
    assert found.store is None


YES = {"protocol": 1, "seeds": True, "refused": ["logprobs"]}


@pytest.mark.parametrize(
    ("said", "continues"),
    [
        ([YES], Continues(True, frozenset(["logprobs"]))),
        ([YES, {"protocol": 1, "seeds": False, "refused": ["n"]}], Continues(False, frozenset(["logprobs", "n"]))),
        ([YES, None], None),
        ([YES | {"protocol": 2}], None),
        ([YES | {"refused": "logprobs"}], None),
        ([YES | {"refused": ["two words"]}], None),
        ([{"protocol": 1}], None),
        ([True], None),
    ],
)
def test_what_is_continued_by_replay_is_read_with_care(said, continues):
    """Several engines continue what each of them does; what is odd is nothing, and the rest of it still counts."""
    found = read(json.dumps({"engines": [PAGES | {"continues": one} for one in said]}).encode(), 0.0)

    assert found is not None
    assert found.continues == continues
    assert (found.continues_not, found.protected) == ("", True)


@pytest.mark.parametrize(("why", "told"), [("the canary differs", "the canary differs"), ("\x1b[2J", ""), (7, "")])
def test_why_nothing_is_continued_is_one_plain_line(why, told):
    """It is shown on terminals."""
    found = read(said(continues=None, continues_not=why), 0.0)

    assert found is not None
    assert (found.continues, found.continues_not) == (None, told)


def test_what_is_continued_is_known_for_a_while():
    """Not from before its server was started anew, not after a few rounds of silence, nor of one that said it oddly."""
    pages = Pages(plugin=Plugin.TOLD, status=read(said(continues=YES), 10.0), fresh_s=20.0)

    known = [pages.continues(since_s, now_s) for since_s, now_s in ((9.0, 30.0), (10.0, 11.0), (9.0, 30.1), (10.1, 11))]
    pages.plugin = Plugin.UNREADABLE
    odd = pages.continues(9.0, 11.0)

    assert [one is not None for one in known] == [True, True, False, False]
    assert odd is None


def test_engines_are_added_up():
    """The longest cycle, each fingerprint once, and protected only where all are."""
    first = PAGES | {"corrupt": [bad("changed", "gate", 3), bad("changed", "scrub", 1)], "fingerprint": "aa"}
    second = PAGES | {"corrupt": [bad("changed", "gate", 2)], "scrub": {"cycle_s": 9}, "protected": False}
    third = PAGES | {"scrub": {"cycle_s": None}, "fingerprint": ""}

    found = read(json.dumps({"engines": [first, second, third]}).encode(), 0.0)

    assert found is not None
    assert (found.engines, found.protected, found.scrub_s) == (3, False, 9.0)
    assert found.corrupt == {("changed", "gate"): 5, ("changed", "scrub"): 1}
    assert found.fingerprints == ("aa", "3fa9c1d2" * 8)


def test_engines_that_are_added_up_already_may_have_several_fingerprints():
    """As an API server of several engines tells them, with a comma in between."""
    found = read(said(fingerprint="aa,bb"), 0.0)

    assert found is not None
    assert found.fingerprints == ("aa", "bb")


def test_pages_that_say_nothing_of_its_memory_are_not_its_fault():
    """A page that was never sealed is unknown; one that a store or another connector gave went bad elsewhere."""
    corrupt = [bad("absent", "gate", 50), bad("changed", "load", 50), bad("misplaced", "scrub", 1)]
    corrupt += [bad("changed", "brought", 50)]

    found = read(said(corrupt=corrupt), 0.0)

    assert found is not None
    assert (found.bad, sum(found.corrupt.values())) == (1, 151)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b"null", b"\xff", b"<html>", b'{"x":' * 100_000, b'{"engines":[]}', b'{"engines":7}',
        said(protected="yes"), said(protected=None), said(corrupt=None), said(corrupt=[{"kind": "changed"}]),
        said(corrupt=[bad("changed", "gate", -1)]), said(corrupt=[bad("changed", "gate", COUNT_MAX + 1)]),
        said(corrupt=[bad("changed", "gate", 10**400)]), said(corrupt=[bad("\x1b[31m", "gate", 1)]),
        said(corrupt=[bad("changed", "gate", 1)] * 65), said(fingerprint="../etc"), said(fingerprint=7),
        said(scrub={"cycle_s": "soon"}), said(scrub={"cycle_s": -1}), said(pages={"sealed": 1.5}), said(pages=[]),
        said(unprotected="weights"), said(unprotected=["x" * 65]), json.dumps({"engines": [PAGES, {}]}).encode(),
    ],
)  # fmt: skip
def test_what_is_no_status_is_none(body):
    """Wrong types, missing parts, numbers that no count can be, words that a terminal would act on."""
    assert read(body, 0.0) is None


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(PAGES)), inner, max_size=6),
    max_leaves=12,
))  # fmt: skip
def test_any_json_can_be_read(value):
    """Whatever comes in whatever place, there is an answer and no error."""
    for body in (value, PAGES | value if isinstance(value, dict) else value, {"engines": [value]}):
        found = read(json.dumps(body).encode(), 0.0)
        assert found is None or found.bad >= 0
