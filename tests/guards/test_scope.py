"""No two scopes have the same name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.scope import lineage, parsed, scope, scopes, tag, tag_of

NAMES = st.text(st.sampled_from("ab/%: é2F"), min_size=1, max_size=6)
PARTS = st.lists(NAMES, min_size=1, max_size=3)


@given(PARTS, PARTS)
def test_names_with_what_parts_them_stay_apart(one, other):
    """«a/b» and «c» are not «a» and «b/c»."""
    assert (scope("user", *one) == scope("user", *other)) == (one == other)


def test_a_key_is_under_its_org_team_and_user():
    """The widest first; a user of an org is not one of the same name elsewhere."""
    assert scopes("key_1", "al/ice", "acme", "search") == (
        "org:acme", "team:acme/search", "user:acme/al%2Fice", "key:key_1"
    )  # fmt: skip
    assert scopes("key_1", "alice", None, None) == ("user:alice", "key:key_1")
    assert scopes("key_1", "alice", None, "search") == ("team:search", "user:alice", "key:key_1")


@given(st.lists(st.text(st.sampled_from("ab/%é2F"), min_size=1, max_size=6), min_size=1, max_size=2))
def test_a_scope_is_read_as_it_is_shown(names):
    """So that what a list shows can be pasted."""
    assert parsed(scope("user", *names)) == scope("user", *names)


@given(*[st.none() | st.text(st.sampled_from("ab{}/%é2F: "), min_size=1, max_size=6)] * 2)
def test_each_org_has_a_tag_of_plain_characters(one, other):
    """That no name can break, and no two share; keys without an org share theirs."""
    assert re.fullmatch(r"[A-Za-z0-9_.~%:-]+", tag(one))
    assert (tag(one) == tag(other)) == (one == other)


def test_accounts_are_under_their_orgs_tag():
    """Whatever the level; sessions and agents as their key."""
    orgs = {"key_1": "acme", "key_2": None}

    names = ("org:acme", "team:acme/search", "user:acme/al%2Fice", "key:key_1", "session:key_1/s", "agent:key_1/a")
    assert {tag_of(name, orgs.__getitem__) for name in names} == {tag("acme")}
    assert {tag_of(name, orgs.__getitem__) for name in ("team:search", "user:alice", "key:key_2")} == {tag(None)}


def test_a_percent_sign_need_not_be_escaped():
    """Where it escapes nothing, it is itself."""
    assert parsed("org:100%") == scope("org", "100%")


@pytest.mark.parametrize(
    "text", ["acme", "org:", "org:a/b", "team:a/b/c", "session:key_1/s", "key:a/b", "user:/a", "org: "]
)
def test_what_is_no_scope_is_refused(text):
    """With what to write."""
    with pytest.raises(ValueError, match="write org:NAME"):
        parsed(text)


def test_an_agent_s_name_is_its_way_down_the_tree():
    """Its parents' names first; a name that is empty, or too far down, is none."""
    assert lineage("planner", 1) == ("planner",)
    assert lineage("planner/search/reader", 3) == ("planner", "search", "reader")
    with pytest.raises(ValueError, match="nest 2 deep at most"):
        lineage("planner/search/reader", 2)
    for odd in ("", "/", "a//b", "a/"):
        with pytest.raises(ValueError, match="no name is empty"):
            lineage(odd, 8)
