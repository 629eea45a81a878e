"""Which replicas of a model are alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.kinship import UNKNOWN, Origin, Traits, apart, between, differences, same_model

USUAL = Traits("t", "c", "s")
DIGESTS = st.none() | st.sampled_from("xyz")
TRAITS = st.builds(Traits, DIGESTS, DIGESTS, DIGESTS)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (USUAL, ()),
        (USUAL._replace(template="d"), ("chat template",)),
        (USUAL._replace(sampling="r"), ("sampling defaults",)),
        (Traits("u", "d", "s"), ("tokenizer",)),
        (Traits("u", "d", "r"), ("tokenizer", "sampling defaults")),
        (Traits(None, "c", None), ()),
    ],
)
def test_what_differs_is_named(other, words):
    """A template's ids differ wherever the tokenizer's do: that is one difference."""
    assert differences(USUAL, other) == differences(other, USUAL) == words


def test_most_are_right_and_of_two_the_first():
    """Declared last or first: two against one; one against one the first declared is the measure."""
    odd = USUAL._replace(template="d")

    assert apart([("a", odd), ("b", USUAL), ("c", USUAL)]) == {"a": ("chat template",)}
    assert apart([("a", USUAL), ("b", odd)]) == {"b": ("chat template",)}
    assert apart([("a", odd), ("b", USUAL)]) == {"b": ("chat template",)}
    assert apart([]) == {}


@given(TRAITS, TRAITS)
def test_what_is_not_known_parts_nobody(one, other):
    """Neither who does not tell, nor others from it."""
    assert differences(one, UNKNOWN) == ()
    assert "a" not in apart([("a", UNKNOWN), ("b", one), ("c", other)])
    assert between([Origin(one), Origin(other)], UNKNOWN) == ()


@given(st.lists(TRAITS, min_size=1, max_size=6))
def test_those_that_are_not_apart_are_alike(family):
    """A stream of any of them can go on at any other of them."""
    found = apart([(str(at), traits) for at, traits in enumerate(family)])
    kin = [traits for at, traits in enumerate(family) if str(at) not in found]

    assert all(differences(one, other) == () for one in kin for other in kin)


def test_a_stream_that_went_on_once_is_of_both_servers():
    """The second one did not tell of its tokenizer: the third must be like the first all the same."""
    origins = [Origin(USUAL), Origin(Traits(sampling="s"))]

    assert between(origins, USUAL) == ()
    assert between(origins, Traits("u", None, None)) == ("tokenizer",)
    assert between([], USUAL) == ()


def test_the_same_model_is_that_of_the_server_that_was_lost_last():
    """True, false, or not known where either does not say."""
    one, other = frozenset({"1"}), frozenset({"2"})
    origins = [Origin(UNKNOWN, one), Origin(UNKNOWN, other)]

    assert (same_model(origins, other), same_model(origins, one)) == (True, False)
    assert same_model(origins, frozenset()) is same_model([], one) is same_model([Origin(UNKNOWN)], one) is None
