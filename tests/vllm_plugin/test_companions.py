"""Beside other connectors: what is refused, who is found, and who is asked. vLLM's own MultiConnector around fakes."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector

from vllm_plugin import companions
from vllm_plugin.refusals import RefusedAtStart, refusals_beside


class Member:
    """As much of a connector as a MultiConnector and companions.py ask of it."""

    def __init__(
        self, tokens: int | None = 0, unprotected: frozenset[str] = frozenset(), refused: bool = False
    ) -> None:
        self.tokens, self.refused = tokens, refused
        self.settings = SimpleNamespace(unprotected=unprotected)
        self.whole: Any = None
        self.others: list[str] = []

    def bind_kv_cache_manager(self, manager: Any) -> None:
        self.manager = manager

    def join(self, whole: Any, others: list[str]) -> None:
        self.whole, self.others = whole, others

    def others_may_not(self, request: Any, local: int) -> bool:
        return self.refused

    def get_num_new_matched_tokens(self, request: Any, local: int) -> tuple[int | None, bool]:
        return self.tokens, bool(self.tokens)


class HoldfastConnector(Member):
    """Ours."""


class OffloadingConnector(Member):
    """One that was tried."""


class NixlConnector(Member):
    """One that was not."""


def multi(*members: Any) -> Any:
    """vLLM's, without its constructor, which would start all of them."""
    companions.guard(MultiConnector)
    whole = MultiConnector.__new__(MultiConnector)
    whole._connectors, whole._requests_to_connector = list(members), {}
    whole._vllm_config = told("recompute")
    return whole


def told(policy: str) -> Any:
    return SimpleNamespace(kv_transfer_config=SimpleNamespace(kv_load_failure_policy=policy))


REQUEST = SimpleNamespace(request_id="r", block_hashes=[b"a", b"b"])


def test_ours_is_found_wherever_it_is_and_its_part_with_it():
    """Alone, first or second; and nothing where there is none."""
    ours, other = HoldfastConnector(), OffloadingConnector()
    sent = SimpleNamespace(metadata=("one", "two"))

    assert companions.find(ours) == (ours, None)
    assert companions.find(ours).part("all") == "all"
    assert companions.find(multi(ours, other)).part(sent) == "one"
    assert companions.find(multi(other, ours)).part(sent) == "two"
    assert companions.find(multi(other, ours)).part(None) is None
    assert companions.find(multi(other)) is None
    assert companions.find(other) is None


def test_it_learns_what_it_is_a_member_of():
    """Before it hears of the cache, in either order."""
    for members in ([ours := HoldfastConnector(), OffloadingConnector()], [OffloadingConnector(), ours]):
        whole = multi(*members)
        whole.bind_kv_cache_manager("manager")
        assert (ours.whole, ours.others, ours.manager) == (whole, ["OffloadingConnector"], "manager")


@pytest.mark.parametrize(("members", "word"), [
    ([HoldfastConnector(), HoldfastConnector()], "write it once"),
    ([HoldfastConnector(), NixlConnector()], "NixlConnector"),
    ([OffloadingConnector(), "nested"], "outer"),
])  # fmt: skip
def test_what_would_not_be_protected_does_not_start(members, word):
    """In one line, with what to write."""
    made = [multi(HoldfastConnector()) if member == "nested" else member for member in members]
    with pytest.raises(RefusedAtStart, match=word) as refused:
        multi(*made).bind_kv_cache_manager("manager")
    assert "write" in str(refused.value)
    assert str(refused.value).count("\n") == 1


def test_an_untried_companion_starts_only_if_told_so():
    """By its word, in our settings."""
    assert refusals_beside(["HoldfastConnector", "NixlConnector"], nested=False, unprotected=frozenset())
    whole = multi(HoldfastConnector(unprotected=frozenset(["other-connectors"])), NixlConnector())
    whole.bind_kv_cache_manager("manager")


def test_a_multi_connector_without_ours_is_left_alone():
    """Whatever is in it."""
    members = [NixlConnector(), NixlConnector()]
    multi(*members).bind_kv_cache_manager("manager")
    assert [one.manager for one in members] == ["manager", "manager"]


def test_the_policy_that_counts_is_that_of_the_whole():
    """vLLM looks at no other."""
    ours = HoldfastConnector()
    whole = multi(ours, OffloadingConnector())
    ours._vllm_config, whole._vllm_config = told("recompute"), told("fail")
    with pytest.raises(RefusedAtStart, match='write "kv_load_failure_policy":"recompute"'):
        companions.check(whole)
    with pytest.raises(RefusedAtStart, match="policy"):
        whole.bind_kv_cache_manager("manager")

    ours._vllm_config, whole._vllm_config = told("fail"), told("recompute")
    companions.check(whole)
    with pytest.raises(RefusedAtStart, match="policy"):
        companions.check(ours)
    companions.check(multi(OffloadingConnector()))


def test_a_companion_brings_what_it_has():
    """As if we were not there."""
    whole = multi(HoldfastConnector(), OffloadingConnector(tokens=64))
    assert whole.get_num_new_matched_tokens(REQUEST, 0) == (64, True)
    assert whole._requests_to_connector == {"r": 1}


@pytest.mark.parametrize(("stored", "chosen"), [(0, {}), (32, {"r": 0})])
def test_a_companion_is_not_asked_for_what_it_brought_wrongly(stored, chosen):
    """Our own store is."""
    whole = multi(HoldfastConnector(tokens=stored, refused=True), OffloadingConnector(tokens=64))
    assert whole.get_num_new_matched_tokens(REQUEST, 0) == (stored, bool(stored))
    assert whole._requests_to_connector == chosen

    whole = multi(OffloadingConnector(tokens=64), HoldfastConnector(tokens=stored, refused=True))
    assert whole.get_num_new_matched_tokens(REQUEST, 0) == (stored, bool(stored))
    assert whole._requests_to_connector == ({"r": 1} if stored else {})


def test_whoever_waits_waits():
    """For the gate, or for a companion that is still looking."""
    for ours, theirs in ((None, 64), (0, None)):
        members = HoldfastConnector(ours), OffloadingConnector(theirs)
        assert multi(*members).get_num_new_matched_tokens(REQUEST, 0) == (None, False)
