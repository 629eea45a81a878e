"""The scheduler's half with a cache of this file: what is sealed, what waits, and what a bad page spoils."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from vllm_plugin.gate import Gate
from vllm_plugin.page import Kind, Load, Lost, Orders, Page, Report, Where
from vllm_plugin.plans import Plans
from vllm_plugin.schedule import Scheduled, Spoiled
from vllm_plugin.scheduler_side import AGAIN_MAX, SchedulerHalf
from vllm_plugin.whose import NOBODY, Whose

TOKENS = 4


@dataclass
class FakeRequest:
    """A request of so many tokens, whose pages have one-letter chains. blocks: in order."""

    request_id: str
    chains: str
    num_tokens: int
    num_computed_tokens: int = 0
    blocks: list[int | None] = field(default_factory=list)
    lora_request: object = None
    kv_transfer_params: object = None

    @property
    def block_hashes(self) -> list[bytes]:
        return [chain.encode() for chain in self.chains]


class World:
    """The half, a cache, and requests that are scheduled by hand."""

    def __init__(self, **options) -> None:
        self.counts: dict[str, float] = {}
        self.half = SchedulerHalf(
            gate=Gate(1.0, random.Random(0)), block_tokens=TOKENS, count=self._count, **options
        )
        self.half.cache = self
        self.hashed: dict[int, bytes] = {}
        self.requests: dict[str, FakeRequest] = {}
        self.evicted: set[int] = set()

    def _count(self, name: str, number: float) -> None:
        self.counts[name] = self.counts.get(name, 0) + number

    def cached(self, chain: bytes) -> int | None:
        return next((block for block, hashed in self.hashed.items() if hashed == chain), None)

    def is_cached_as(self, block: int, chain: bytes) -> bool:
        return self.hashed.get(block) == chain

    def table(self, request_id: str) -> Sequence[int | None]:
        return self.requests[request_id].blocks if request_id in self.requests else []

    def count(self, request_id: str) -> int:
        return len(self.table(request_id))

    def block(self, request_id: str, number: int) -> int | None:
        return self.table(request_id)[number]

    def evict(self, blocks: Collection[int]) -> None:
        self.evicted |= set(blocks)
        for block in blocks:
            self.hashed.pop(block, None)

    def evict_all(self) -> None:
        self.hashed.clear()

    def admit(self, request: FakeRequest, new: Sequence[int], hit: int = 0) -> None:
        """It gets these blocks to write to, after `hit` blocks of the cache, verified or not."""
        hits = [self.cached(chain) for chain in request.block_hashes[:hit]]
        self.half.may_read(request, hit * TOKENS)
        self.requests[request.request_id] = request
        request.blocks = [*hits, *new]
        self.half.admitted(request)
        request.num_computed_tokens = hit * TOKENS  # vLLM says so only then

    def step(self, *scheduled: tuple[FakeRequest, int, bool], new: Sequence[int] = ()) -> Orders:
        """They compute so many tokens each; new: blocks of whoever is not fresh."""
        ones = []
        for request, tokens, fresh in scheduled:
            hit = request.num_computed_tokens // TOKENS
            given_out = tuple(request.blocks[hit:]) if fresh else tuple(new)
            request.blocks += [] if fresh else list(new)
            ones.append(Scheduled(request, tokens, given_out, fresh))
        orders = self.half.orders(ones)
        for request, tokens, _ in scheduled:
            request.num_computed_tokens += tokens
        for page in orders.seal:
            self.hashed[page.block] = page.chain
        return orders

    def hear(self, step: int, *lost: Lost, intact: Sequence[Page] = ()) -> Spoiled:
        return self.half.hear(Report(step, b"m", frozenset(intact), lost), list(self.requests))


def running(world: World, name: str = "r", chains: str = "abcdef", first_block: int = 1) -> tuple[FakeRequest, Orders]:
    """A request that has computed two pages and a token of the third."""
    request = FakeRequest(name, chains, 9)
    world.admit(request, [first_block, first_block + 1, first_block + 2])
    return request, world.step((request, 9, True))


def test_a_page_is_sealed_when_it_is_full_and_the_rest_is_a_tail():
    """With its chain, its position, and the generation of its block."""
    world = World()
    _, orders = running(world)

    assert orders.forget == (1, 2, 3)
    assert orders.seal == (Page(1, 1, 0, b"a", 0), Page(2, 1, 0, b"b", 4))
    assert [(tail.request_id, tail.page.block) for tail in orders.tails] == [("r", 3)]
    assert orders.hold == (("r", (1, 2, 3)),)


def test_what_it_gets_while_it_runs_is_held_and_forgotten():
    """By the same request, besides what it has."""
    world = World()
    request, _ = running(world)
    orders = world.step((request, 4, False), new=[7])

    assert (orders.hold, orders.forget) == ((("r", (7,)),), (7,))
    assert world.step((request, 1, False)).hold == ()


def test_a_page_is_sealed_once_and_drafts_do_not_fill_it():
    """Tokens beyond those that the request has may be taken back."""
    world = World()
    request, _ = running(world)
    request.num_tokens = 11

    assert world.step((request, 3, False)).seal == ()
    request.num_computed_tokens, request.num_tokens = 11, 12
    assert [page.block for page in world.step((request, 1, False)).seal] == [3]


def test_hits_wait_and_are_let_in_by_what_was_seen():
    """And by nothing else."""
    world = World()
    running(world)
    other = FakeRequest("o", "abxyz", 9)

    assert not world.half.may_read(other, 8)
    orders = world.step()
    assert [page.block for page in orders.check] == [1, 2]
    world.hear(2, intact=orders.check)
    assert world.half.may_read(other, 8)


def test_a_page_that_makes_room_in_the_pass_that_asks_for_it_is_not_looked_at():
    """Its block is somebody else's by then, and what is in it no news of the page: that would be a false alarm."""
    world = World()
    running(world)
    world.half.finished("r")

    assert not world.half.may_read(FakeRequest("o", "abxyz", 9), 8)
    third = FakeRequest("t", "pq", 4)
    world.admit(third, [1])
    assert [page.block for page in world.step((third, 4, True)).check] == [2]


def test_a_bad_page_is_evicted_and_who_did_not_hold_it_goes_on():
    """The next look-up does not hit it."""
    world = World()
    _, orders = running(world)
    world.half.finished("r")
    del world.requests["r"]

    spoiled = world.hear(1, Lost(orders.seal[0], Kind.CHANGED, Where.GATE, 1))

    assert not spoiled
    assert world.evicted == {1}
    assert 1 in world.step().forget


def test_who_holds_a_bad_page_computes_again_when_it_gave_out_nothing_since():
    """It was good after the step before: all tokens until then are right."""
    world = World()
    request, orders = running(world)
    world.hear(1)
    world.half.emitted(["r"])
    world.step((request, 1, False))

    spoiled = world.hear(2, Lost(orders.seal[0], Kind.CHANGED, Where.SCRUB, 1))

    assert spoiled == Spoiled(again=frozenset("r"))
    assert world.step().rewind == ("r",)


def test_who_gave_out_tokens_since_fails():
    """They may be wrong, and cannot be called back."""
    world = World()
    request, orders = running(world)
    world.hear(1)
    world.step((request, 1, False))
    world.hear(2)
    world.half.emitted(["r"])
    world.step((request, 1, False))

    assert world.hear(3, Lost(orders.seal[0], Kind.CHANGED, Where.SCRUB, 1)) == Spoiled(failed=frozenset("r"))


def making_room(world: World) -> Page:
    """A request gave out tokens in steps 1 and 2, and had to make room in step 3. Returns its first page."""
    request, orders = running(world)
    world.hear(1)
    world.half.emitted(["r"])
    world.step((request, 1, False))
    world.hear(2)
    world.half.emitted(["r"])
    request.blocks, request.num_computed_tokens = [], 0
    world.half.orders([], ["r"])
    return orders.seal[0]


def test_who_gave_out_tokens_since_fails_though_it_made_room_meanwhile():
    """It holds nothing by then, and what it gave out is as wrong. If it gave out nothing since, it goes on."""
    for good_step, failed in ((1, {"r"}), (2, set())):
        world = World()
        lost = Lost(making_room(world), Kind.CHANGED, Where.SCRUB, good_step)
        assert world.half.hear(Report(3, b"m", lost=(lost,)), []) == Spoiled(failed=frozenset(failed))

    world = World()
    stranger = making_room(world)._replace(chain=b"z")
    assert not world.half.hear(Report(3, b"m", lost=(Lost(stranger, Kind.CHANGED, Where.SCRUB, 0),)), [])


def test_who_gave_out_tokens_of_two_models_fails_though_it_made_room_meanwhile():
    """It would go on with the new one."""
    for since, failed in ((2, {"r"}), (3, set())):
        world = World()
        making_room(world)
        assert world.half.hear(Report(3, b"n", void=True, mixed_since=since), []) == Spoiled(failed=frozenset(failed))


def test_who_must_not_be_computed_again_fails():
    """By the operator's word, or because its step cannot be thrown away."""
    for options in ({"abort": True}, {"protected": False}):
        world = World(**options)
        _, orders = running(world)

        lost = Lost(orders.seal[0], Kind.CHANGED, Where.SCRUB, 0)
        assert world.hear(1, lost) == Spoiled(failed=frozenset("r"))


def test_who_cannot_be_computed_again_fails_and_is_counted_so():
    """Whether a page was bad, or all were."""
    for void in (False, True):
        world = World()
        _, orders = running(world)
        lost = () if void else (Lost(orders.seal[0], Kind.CHANGED, Where.SCRUB, 0),)
        spoiled = world.half.hear(Report(1, b"m", lost=lost, void=void), ["r"], lambda name: name != "r")

        assert spoiled == Spoiled(failed=frozenset({"r"}))
        assert world.counts["requests_aborted"] == 1
        assert not world.counts.get("requests_recomputed")


def test_nobody_is_computed_again_for_ever():
    """A block that cannot keep anything is given to him again and again."""
    world = World()
    request, orders = running(world)
    for step in range(1, AGAIN_MAX + 1):
        assert world.hear(step, Lost(orders.seal[0], Kind.CHANGED, Where.SCRUB, step)).again == {"r"}
        request.num_computed_tokens, request.blocks = 0, []
        world.admit(request, [1, 2, 3])
        orders = world.step((request, 9, True))

    assert world.hear(9, Lost(orders.seal[0], Kind.CHANGED, Where.SCRUB, 9)).failed == {"r"}


def test_pages_computed_from_a_bad_one_are_withdrawn_whoever_computed_them():
    """They carry valid seals. Those filled while it was still good stay."""
    world = World()
    request, orders = running(world)
    request.num_tokens = 12
    second = world.step((request, 3, False))  # fills block 3, chain c, in step 2
    other = FakeRequest("o", "abxy", 12)
    world.hear(2)
    world.admit(other, [7, 8], hit=2)
    third = world.step((other, 4, True))  # fills block 7, chain x, in step 3
    del world.requests["o"]
    assert [page.block for page in (*second.seal, *third.seal)] == [3, 7]

    spoiled = world.hear(3, Lost(orders.seal[1], Kind.CHANGED, Where.SCRUB, 2))

    assert world.evicted == {2, 7}
    assert world.step().withdraw == (7,)  # what the bad page was when it was full, a store may keep
    assert spoiled.again == {"r"}
    assert world.counts["pages_withdrawn"] == 1


def test_pages_computed_from_a_bad_one_are_withdrawn_though_one_between_was_lost_before():
    """It was intact when the last one was computed from it, and that one stayed; the first one was not."""
    world = World()
    request = FakeRequest("r", "abcdef", 12)
    world.admit(request, [1, 2, 3])
    first, second, _ = world.step((request, 12, True)).seal
    world.half.finished("r")
    del world.requests["r"]
    world.hear(2, Lost(second, Kind.CHANGED, Where.SCRUB, 1))
    assert world.evicted == {2}

    world.hear(3, Lost(first, Kind.CHANGED, Where.SCRUB, 0))
    assert world.evicted == {1, 2, 3}


def test_who_holds_what_was_withdrawn_is_spoiled_too():
    """Even where it has its own copy of the bad page."""
    world = World()
    _, orders = running(world)
    reader = FakeRequest("o", "abz", 9)
    world.admit(reader, [9], hit=2)
    reader.blocks[0] = 50  # another block with the same tokens
    world.step((reader, 1, True))
    del world.requests["r"]

    assert world.hear(2, Lost(orders.seal[0], Kind.CHANGED, Where.GATE, 0)).again == {"o"}


def test_a_page_that_nobody_sealed_spoils_nobody():
    """It is evicted, and that is all."""
    world = World()
    _, orders = running(world)

    assert not world.hear(1, Lost(orders.seal[0], Kind.ABSENT, Where.GATE, -1))
    assert world.evicted == {1}


def test_a_tail_spoils_its_request_and_the_page_it_became():
    """In the step in which it became full, others too may have been filled after it."""
    world = World()
    request, orders = running(world)
    (tail,) = orders.tails
    request.num_tokens = 17
    world.step((request, 8, False), new=[4, 5])

    assert world.hear(2, Lost(tail.page, Kind.CHANGED, Where.TAIL, 1)).again == {"r"}
    assert world.evicted == {3, 4}
    assert world.step().withdraw == (3, 4)


def test_a_tail_that_is_not_full_spoils_its_request_alone():
    """Nothing continues it, and the first pages of all chains least of all."""
    world = World()
    _, orders = running(world)

    assert world.hear(1, Lost(orders.tails[0].page, Kind.CHANGED, Where.TAIL, 0)).again == {"r"}
    assert world.evicted == {3}


def holes(damage) -> World:
    world = World()
    running(world)
    world.hear(1)
    other = FakeRequest("o", "abxy", 12)
    world.admit(other, [7], hit=2)
    damage(other.blocks)
    world.step((other, 4, True))
    return world


def test_a_request_must_read_one_unbroken_chain():
    """In order, without holes, of the pages that it was let in with."""
    assert not holes(lambda blocks: None).hear(2)
    for damage in (
        lambda blocks: blocks.reverse(),
        lambda blocks: blocks.__setitem__(0, None),
        lambda blocks: blocks.__setitem__(1, 40),
        lambda blocks: blocks.pop(0),
    ):
        world = holes(damage)
        filled = {block for block, chain in world.hashed.items() if chain == b"x"}  # from whatever it read
        assert world.hear(2).again == {"o"}
        assert world.counts["chains_broken"] == 1
        assert filled <= world.evicted
        assert filled <= set(world.step().forget)


def test_what_was_computed_from_holes_goes_though_its_client_hung_up_while_it_was_computed():
    """vLLM ends such a request before anybody hears of the step: what it has filled carries valid seals by then."""
    world = holes(lambda blocks: blocks.__setitem__(1, 40))
    filled = {block for block, chain in world.hashed.items() if chain == b"x"}
    world.half.finished("o")
    del world.requests["o"]

    assert not world.hear(2)
    assert filled
    assert filled <= world.evicted
    orders = world.step()
    assert filled <= set(orders.forget)
    assert filled <= set(orders.withdraw)


def test_a_request_must_read_the_very_pages_it_was_let_in_with():
    """Not another copy of one, which nobody has looked at."""
    world = World()
    running(world)
    world.hashed[40] = b"b"
    other = FakeRequest("o", "abxy", 12)
    world.admit(other, [7], hit=2)
    other.blocks[1] = 40
    world.step((other, 4, True))

    assert world.hear(2).again == {"o"}


def test_a_request_must_have_been_let_in_with_all_that_it_reads():
    """Where the gate saw fewer pages than it reads, some were never looked at."""
    world = World()
    running(world)
    del world.hashed[2]
    other = FakeRequest("o", "abxy", 12)
    world.half.may_read(other, 8)
    world.requests["o"], other.blocks = other, [1, 2, 7]
    world.half.admitted(other)
    other.num_computed_tokens = 8
    world.step((other, 4, True))

    assert world.hear(2).again == {"o"}


def test_a_window_may_leave_pages_behind():
    """Those that attention does not reach any more."""
    world = World(window=5)
    running(world)
    world.hear(1)
    other = FakeRequest("o", "abxy", 12)
    world.half.may_read(other, 8)
    world.requests["o"] = other
    other.blocks = [None, 2, 7]
    world.half.admitted(other)
    other.num_computed_tokens = 8
    world.step((other, 4, True))

    assert not world.hear(2)


def test_a_session_that_goes_on_has_held_its_pages_all_the_time():
    """It was let in with others than it has now, or with none, and that is no hole."""
    world = World()
    request, _ = running(world)
    request.num_computed_tokens, request.num_tokens = 8, 13
    world.half.admitted(request)
    request.blocks += [4]
    orders = world.step((request, 5, True))

    assert not world.hear(2)
    assert [page.block for page in orders.seal] == [3]
    assert orders.release == ("r",)
    assert orders.hold == (("r", (1, 2, 3, 4)),)


class Everything:
    """A store that has whatever it is asked for."""

    def held(self, request_id: str, keys: Sequence[bytes]) -> int:
        return len(keys)

    def drop(self, request_id: str) -> None:
        pass


def waiting(world: World) -> tuple[FakeRequest, Orders]:
    """A request that gets its second and third page from a store; its first is here."""
    running(world, "r", "a")
    world.hear(1)
    request, plans = FakeRequest("w", "abcd", 14), Plans(Everything(), lambda chain: chain, TOKENS)
    assert plans.beyond("w", request.block_hashes, request.num_tokens, TOKENS) == 2 * TOKENS
    world.requests["w"], request.blocks = request, [1, 5, 6]
    world.half.waits(request, plans)
    return request, world.step()


def test_blocks_that_wait_for_their_pages_are_given_out_and_not_believed():
    """Whatever was in them; they hold nothing yet."""
    _, orders = waiting(World())

    assert orders.load == (Load("w", (Page(5, 1, 0, b"b", 4), Page(6, 1, 0, b"c", 8)), b"a"),)
    assert {5, 6} <= set(orders.forget)
    assert orders.seal == ()


def test_what_was_loaded_continues_what_was_here():
    """It goes with it, when that is found bad; and its request has no hole."""
    world = World()
    request, orders = waiting(world)
    (load,) = orders.load
    world.half.hear(Report(2, b"m", loaded=frozenset(load.pages)), ["r"])
    request.num_computed_tokens = 3 * TOKENS
    world.hashed |= {5: b"b", 6: b"c"}
    world.half.admitted(request)
    request.blocks.append(7)
    world.step((request, 2, True))
    assert not world.hear(3)

    world.hear(3, Lost(world.half._residents.page(1, 0, b"a", 0), Kind.CHANGED, Where.SCRUB, 1))
    assert world.evicted == {1, 5, 6}
    assert world.counts["pages_loaded"] == 2


def test_a_page_that_went_bad_while_a_request_waited_spoils_its_first_step():
    """It was verified before that, it cannot be stopped now, and nobody would look at it again."""
    world = World()
    request, orders = waiting(world)
    first = world.half._residents.page(1, 0, b"a", 0)
    report = Report(2, b"m", lost=(Lost(first, Kind.CHANGED, Where.SCRUB, 1),), loaded=frozenset(orders.load[0].pages))
    assert not world.half.hear(report, [])

    request.num_computed_tokens = 3 * TOKENS
    world.half.admitted(request)
    request.blocks.append(7)
    world.step((request, 2, True))
    assert world.half.hear(Report(3, b"m"), ["w"]).again == {"w"}


def test_what_was_not_loaded_is_not_resident():
    """It is computed, and sealed then; nothing is thrown away for it."""
    world = World()
    request, orders = waiting(world)
    one, two = orders.load[0].pages
    world.half.hear(Report(2, b"m", lost=(Lost(one, Kind.CHANGED, Where.LOAD, -1),), loaded=frozenset([two])), ["r"])

    assert world.counts["pages_loaded"] == 1
    assert world.half.model == b"m"
    assert not world.half._residents.holds(one)
    assert world.half._residents.holds(two)

    request.num_computed_tokens = TOKENS
    world.half.admitted(request)
    request.blocks.append(7)
    orders = world.step((request, 10, True))
    assert [page.block for page in orders.seal] == [5, 6]
    assert orders.withdraw == ()
    assert not world.half.hear(Report(3, b"m"), ["w"])


def test_when_the_model_is_another_all_pages_are_void_and_all_requests_computed_anew():
    """Nobody fails for it: what they gave out was right. It counts for no request's eight times."""
    world = World()
    for name, block in (("r", 1), ("s", 4)):
        running(world, name, "abcdef" if name == "r" else "uvwxyz", block)
    world.hear(1)
    world.half.emitted(["r", "s"])
    for step in range(2, 2 + 2 * AGAIN_MAX):
        spoiled = world.half.hear(Report(step, b"n%d" % step, void=True), ["r", "s"])
        assert spoiled == Spoiled(again=frozenset({"r", "s"}))

    assert world.hashed == {}
    assert world.half.model == b"n%d" % step
    assert world.step().rewind.count("r") == 2 * AGAIN_MAX


def test_a_verdict_of_the_model_before_lets_nobody_in():
    """Not even one that came with the news."""
    world = World()
    running(world)
    other = FakeRequest("o", "abxyz", 9)
    assert not world.half.may_read(other, 8)
    (*pages,) = world.step().check
    world.half.hear(Report(2, b"n", frozenset(pages), void=True), ["r"])

    assert world.cached(b"a") is None
    world.hashed = {1: b"a", 2: b"b"}  # as if it had been left there
    assert not world.half.may_read(other, 8)


def test_who_gave_tokens_out_since_the_weights_were_last_right_fails():
    """They may be of both models. Others are computed anew."""
    world = World()
    running(world, "r")
    running(world, "s", "uvwxyz", 4)
    world.hear(1)
    world.half.emitted(["r"])
    world.step()
    world.half.emitted(["s"])

    spoiled = world.half.hear(Report(3, b"n", void=True, mixed_since=3), ["r", "s"])
    assert spoiled == Spoiled(again=frozenset({"r"}), failed=frozenset({"s"}))


def test_where_a_step_cannot_be_thrown_away_all_fail():
    """Their tokens may be out already."""
    world = World(protected=False)
    running(world)

    assert world.half.hear(Report(1, b"n", void=True), ["r"]) == Spoiled(failed=frozenset({"r"}))


def test_who_waits_for_pages_of_the_model_before_is_computed_anew_when_it_is_admitted():
    """It cannot be stopped earlier."""
    world = World()
    request = FakeRequest("r", "abc", 9)
    request.blocks = [1, 2, 3]
    world.requests["r"] = request
    plans = SimpleNamespace(load=lambda name, table, page: Load(name, (page(1, b"a", 0), page(2, b"b", 4)), b""))
    world.half.waits(request, plans)
    (load,) = world.step().load
    world.half.hear(Report(1, b"m", loaded=frozenset(load.pages)), [])
    world.half.hear(Report(2, b"n", void=True), [])
    request.num_computed_tokens = 8
    world.half.admitted(request)
    world.step((request, 1, True))

    assert world.half.hear(Report(3, b"n"), ["r"]) == Spoiled(again=frozenset({"r"}))


def test_the_weights_are_read_once_for_each_time_that_somebody_may_have_changed_them():
    """With the next step's orders."""
    world = World()
    assert not world.step().reread
    world.half.weights_may_differ()

    assert world.step().reread
    assert not world.step().reread


def test_pages_computed_with_an_adapter_are_for_no_store():
    """Its name is in their chain, and not its contents."""
    world = World()
    request = FakeRequest("r", "abcdef", 9, lora_request=object())
    world.admit(request, [1, 2, 3])

    assert world.step((request, 9, True)).unstored == {1, 2}
    assert running(World())[1].unstored == frozenset()


def test_one_tail_after_the_other_where_not_all_are_asked_for():
    """Each request has its turn."""
    world = World(every_tail=False)
    requests = [FakeRequest(name, name * 6, 5) for name in "rstu"]
    for number, request in enumerate(requests):
        world.admit(request, [3 * number + 1, 3 * number + 2, 3 * number + 3])
    seen = [tail.request_id for tail in world.step(*((one, 5, True) for one in requests)).tails]
    for _ in range(3):
        seen += [tail.request_id for tail in world.step(*((one, 0, False) for one in requests)).tails]

    assert sorted(seen) == ["r", "s", "t", "u"]

    seldom = World(every_tail=False, tail_steps=3)
    for request in requests[:2]:
        seldom.admit(FakeRequest(request.request_id, request.chains, 5), [ord(request.request_id), 1])
    both = list(seldom.requests.values())
    told = [seldom.step(*((one, 5 * (step == 0), step == 0) for one in both)).tails for step in range(6)]
    assert [[tail.request_id for tail in tails] for tails in told] == [[], [], ["s"], [], [], ["r"]]


def test_after_a_reset_only_what_is_held_is_looked_at():
    """The rest is not there for anybody, and its memory may be given back to the device."""
    world = World()
    _, orders = running(world)
    running(world, "gone", "xyz", first_block=7)
    world.half.finished("gone")
    del world.requests["gone"]
    world.hear(2)
    world.table = lambda request_id: world.requests[request_id].blocks if request_id in world.requests else []
    assert world.half.given_up() == []

    world.half.reset()

    assert world.half.given_up() == [7, 8]
    assert world.step().forget == (7, 8)
    assert world.half.given_up() == []
    assert world.hear(3, Lost(orders.seal[0], Kind.CHANGED, Where.SCRUB, 1)).again == {"r"}


@pytest.mark.parametrize(("said", "of"), [
    ({"holdfast_session": "s"}, Whose("s", 0)), (None, NOBODY), ({}, NOBODY), ("s", NOBODY),
    ({"holdfast_session": "s", "holdfast_generation": 3}, Whose("s", 3)), ({"holdfast_session": 7}, NOBODY),
])  # fmt: skip
def test_whose_pages_they_are_is_told_where_a_request_says_so(said, of):
    """What cannot be a name is none."""
    world = World()
    request = FakeRequest("r", "abcdef", 9, kv_transfer_params=said)
    world.admit(request, [1, 2, 3])
    assert world.step((request, 9, True)).whose == ({1: of, 2: of} if of.session else {})

    world.requests["w"] = waiting = FakeRequest("w", "uv", 9, blocks=[7, 8], kv_transfer_params=said)
    plans = SimpleNamespace(load=lambda name, table, page: Load(name, (page(7, b"u", 0),), b""))
    world.half.waits(waiting, plans)
    assert [load.whose for load in world.step().load] == [of]


def test_a_reset_that_running_requests_outlive_takes_nothing_from_what_is_known_of_theirs():
    """vLLM refuses to empty its own cache then, and tells connectors all the same: the pages can be hit still."""
    world = World()
    request, orders = running(world)
    world.hear(1)
    request.num_tokens = 12
    world.step((request, 3, False))
    world.hear(2)
    world.half.reset()

    world.hear(3, Lost(orders.seal[0], Kind.CHANGED, Where.SCRUB, 0))
    assert world.evicted == {1, 2, 3}


def test_a_reset_leaves_what_was_loaded_for_who_waits():
    """It holds its pages, and will read them."""
    world = World()
    _, orders = waiting(world)
    pages = orders.load[0].pages
    world.half.hear(Report(2, b"m", loaded=frozenset(pages)), ["r"])
    world.half.reset()

    assert not {5, 6} & set(world.step().forget)
    world.half.hear(Report(3, b"m", lost=(Lost(pages[0], Kind.CHANGED, Where.SCRUB, 1),)), ["r"])
    assert world.evicted == {5, 6}


def test_tokens_that_were_given_out_while_weights_changed_end_with_an_error():
    """A change of several steps, through which requests ran. Who gave nothing out meanwhile is computed anew."""
    world = World()
    running(world, "r")
    running(world, "s", "uvwxyz", 4)
    world.hear(1)
    world.half.emitted(["r", "s"])
    world.step()
    begun = world.half.hear(Report(2, b"1", settled=False, void=True), ["r", "s"])
    assert begun == Spoiled(again=frozenset({"r", "s"}))
    world.step()
    world.half.hear(Report(3, b"1", settled=False), ["r", "s"])
    world.half.emitted(["s"])
    world.step()

    ended = world.half.hear(Report(4, b"n", void=True), ["r", "s"])
    assert ended == Spoiled(again=frozenset({"r"}), failed=frozenset({"s"}))
    world.step()
    world.half.emitted(["r"])
    world.step()
    assert world.half.hear(Report(6, b"o", void=True), ["r"]) == Spoiled(again=frozenset({"r"}))


def test_what_was_computed_from_a_bad_page_is_withdrawn_though_its_block_was_given_out_anew():
    """It was found, and another request had its block before the scheduler heard of it: to that one it is nothing."""
    world = World()
    _, orders = running(world)
    world.hear(1)
    first = orders.seal[0]
    world.half.cache.evict([1])
    world.evicted.clear()
    other = FakeRequest("o", "xyz", 4)
    world.admit(other, [1])
    world.step((other, 4, True))

    spoiled = world.hear(2, Lost(first, Kind.CHANGED, Where.SCRUB, 0))
    assert world.evicted == {2}
    assert spoiled == Spoiled(again=frozenset({"r"}))
    assert world.cached(b"x") == 1
    assert not world.hear(3, Lost(first._replace(chain=b""), Kind.CHANGED, Where.TAIL, 0))
