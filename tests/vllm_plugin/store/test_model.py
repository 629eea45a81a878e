"""Whatever is done to a store, in whatever order: it has what a dictionary would have."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.vllm_plugin.store.pages import check_whole, digest_of, key_of, page
from vllm_plugin.store import Erased, Quarantine, open_store

NUMBERS = st.integers(0, 7)
SESSIONS = st.sampled_from("abc")
SIZES = {0: 100, 1: 4096, 2: 9000}  # by version: fits beside others, fills a page and more, some pages


def made(number, session, version):
    return page(number, session, version=version, size=SIZES[version])


class Same(RuleBasedStateMachine):
    """The store beside {number: (version, users)}. Nothing is ever evicted here: there is room for all."""

    def __init__(self):
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
        self.url = f"lmdb://{self.place}/store?size=8MiB"
        self.store = open_store(self.url, populate=False)
        self.model = {}

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.place)

    @rule(pages=st.lists(st.tuples(NUMBERS, SESSIONS, st.sampled_from(list(SIZES))), max_size=5))
    def put(self, pages):
        assert self.store.put([made(*one) for one in pages])
        for number, session, version in pages:
            self.model.setdefault(number, (version, set()))[1].add(session)

    @rule(numbers=st.lists(NUMBERS, max_size=4), session=SESSIONS)
    def used(self, numbers, session):
        assert self.store.used_soon([key_of(number) for number in numbers], session)
        assert self.store.put([])  # it is done by then
        for number in numbers:
            if number in self.model:
                self.model[number][1].add(session)

    @rule(number=NUMBERS, version=st.sampled_from(list(SIZES)))
    def quarantine(self, number, version):
        there = number in self.model and self.model[number][0] == version
        done = self.store.quarantine(key_of(number), made(number, "", version).manifest.digest)
        assert done == (Quarantine.REMOVED if there else Quarantine.GONE)
        if there:
            del self.model[number]

    @rule(session=SESSIONS)
    def erase(self, session):
        gone = [number for number, (_, users) in self.model.items() if session in users]
        size = sum(SIZES[self.model.pop(number)[0]] for number in gone)
        assert self.store.erase(session) == Erased(len(gone), size)

    @rule()
    def erase_all(self):
        assert self.store.erase_all().pages == len(self.model)
        self.model.clear()

    @rule()
    def open_again(self):
        self.store.close()
        self.store = open_store(self.url, populate=False)

    @rule(numbers=st.lists(NUMBERS, max_size=8))
    def held(self, numbers):
        gap = next((at for at, number in enumerate(numbers) if number not in self.model), len(numbers))
        assert self.store.held([key_of(number) for number in numbers]) == gap

    @invariant()
    def reads_the_same(self):
        with self.store.read([key_of(number) for number in range(8)]) as found:
            for number, one in enumerate(found):
                expected = self.model.get(number)
                assert (one is None) == (expected is None)
                if one:
                    assert one.manifest.digest == made(number, "", expected[0]).manifest.digest
                    assert digest_of(one.payload) == one.manifest.digest
        assert check_whole(self.store) == len(self.model)
        assert {one.name: one.pages for one in self.store.sessions() if one.pages} == self._sessions()

    def _sessions(self):
        users = [user for _, all_users in self.model.values() for user in all_users]
        return {user: users.count(user) for user in set(users)}


TestSame = Same.TestCase
TestSame.settings = settings(max_examples=30, stateful_step_count=20, deadline=None, database=None)
