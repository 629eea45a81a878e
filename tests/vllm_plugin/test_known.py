"""What was sealed and is remembered; what others brought and is not asked for again."""

from types import SimpleNamespace

from vllm_plugin.known import PER_CHAIN_MAX, Known
from vllm_plugin.residents import Residents
from vllm_plugin.strangers import Strangers


def test_a_page_is_remembered_by_its_chain():
    """All its latest digests: the same tokens, computed twice, may differ in their last bits."""
    known = Known()
    known.add(b"a", b"1")
    known.add(b"a", b"2")
    known.add(b"b", b"3")
    assert known.of(b"a") == (b"1", b"2")
    assert known.of(b"c") == ()

    for number in range(PER_CHAIN_MAX):
        known.add(b"a", bytes([number]))
    assert known.of(b"a") == tuple(bytes([number]) for number in range(PER_CHAIN_MAX))


def test_a_page_sealed_again_as_before_takes_no_room():
    """It is the latest then."""
    known = Known()
    for digest in (b"1", b"2", b"1"):
        known.add(b"a", digest)
    assert known.of(b"a") == (b"2", b"1")


def test_the_chain_that_was_not_asked_for_the_longest_time_goes_first():
    """There is a limit."""
    known = Known(chains_max=2)
    known.add(b"a", b"1")
    known.add(b"b", b"2")
    known.of(b"a")
    known.add(b"c", b"3")
    assert (len(known), known.of(b"a"), known.of(b"b")) == (2, (b"1",), ())


def test_what_should_never_have_been_computed_is_forgotten():
    """It alone; and all, when the model is another one."""
    known = Known()
    known.add(b"a", b"1")
    known.add(b"a", b"2")
    known.forget(b"a", b"1")
    known.forget(b"b", b"1")
    assert known.of(b"a") == (b"2",)
    known.forget(b"a", b"2")
    assert len(known) == 0

    known.add(b"a", b"1")
    known.clear()
    assert known.of(b"a") == ()


def test_chains_that_were_bad_are_not_asked_for():
    """The latest of them; and none, once others have forgotten all."""
    strangers = Strangers(chains_max=2)
    for chain in (b"a", b"b", b"c"):
        strangers.refuse(chain)
    assert not strangers.are_refused("r", [b"a"])
    assert strangers.are_refused("r", [b"x", b"c"])
    strangers.clear()
    assert not strangers.are_refused("r", [b"c"])


def admitted(strangers: Strangers, tokens: int, table: list) -> list | None:
    """A request whose second page nobody here has sealed."""
    residents = Residents()
    residents.given_out([1, 2, 3])
    residents.filled(residents.page(1, 0, b"a", 0), b"", 1)
    request = SimpleNamespace(request_id="r", num_computed_tokens=tokens, block_hashes=[b"a", b"b", b"c"])
    return strangers.pages(request, 0, table, 4, residents, 5)


def test_all_pages_of_a_request_are_looked_at_if_one_was_brought():
    """Whoever brings pages may have written over those beside them. If none was, none."""
    strangers = Strangers()
    assert [page.block for page in admitted(strangers, 8, [1, 2, 3])] == [1, 2]
    assert admitted(strangers, 4, [1, 2, 3]) == []
    assert not strangers.are_refused("r", [])


def test_what_is_no_run_of_whole_pages_is_refused():
    """A part of one, or a hole: that request gets nothing from others any more."""
    for tokens, table in ((6, [1, 2, 3]), (12, [1, None, 3])):
        strangers = Strangers()
        assert admitted(strangers, tokens, table) is None
        assert strangers.are_refused("r", [])
        strangers.finished("r")
        assert not strangers.are_refused("r", [])
