"""History swapping on real vLLM, with its pages in shared memory: a page that is valid somewhere else is put under the
key that a request asks for, through the store itself. It is refused, counted, and the answer is the right one.
"""

import shutil
import tempfile
from pathlib import Path

import pytest

from loadtests.gameday.store_hand import StoreHand
from tests.vllm_plugin.real.engine import Engine, prompts
from vllm_plugin.store import open_store

TOKENS, BLOCK = 12, 32


@pytest.fixture(scope="module")
def address():
    place = Path(tempfile.mkdtemp(prefix="holdfast-test-", dir="/dev/shm"))
    yield f"lmdb://{place / 'store'}?size=64MiB"
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def engine(tmp_path_factory, address):
    engine = Engine(tmp_path_factory.mktemp("engine"), {"store": address})
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def store(engine, address):
    opened = open_store(address)
    yield opened
    opened.close()


@pytest.fixture
def asked(engine, address):
    """A prompt and its answer, and the keys of its full pages in order, by salt; and another prompt's."""
    (((mine,),), ((others,),)) = (prompts(seed, families=1, each=1, shared=10, own=120) for seed in (61, 62))
    hand, found = StoreHand(address), {}
    for name, prompt, salt in (("mine", mine, None), ("others", others, None), ("salted", mine, "a tenant's")):
        answer = engine.ask(prompt, TOKENS, salt=salt)
        chains = engine.chains[f"r{engine._number}"][: len(prompt) // BLOCK]
        engine.ask([5, 6, 7], 2)  # what was filled last leaves a step later
        found[name] = prompt, answer, hand.keys(chains)
    return found


def ask(engine, prompt, salt=None):
    """Its answer without any pages that are here; how many came from the store, and how many of it were refused."""
    engine.forget()
    names = ("holdfast_pages_loaded", "holdfast_pages_corrupt")
    before = [engine.metric(name) for name in names]
    answer = engine.ask(prompt, TOKENS, salt=salt)
    return answer, *(engine.metric(name) - was for name, was in zip(names, before, strict=True))


def put_under(store, key, other, **said):
    """The page of another key, with a manifest that says whatever helps."""
    with store.read([key, other]) as (right, wrong):
        manifest = (right or wrong).manifest
        payload, digest = bytes(wrong.payload), wrong.manifest.digest
        wrong = wrong._replace(key=key, manifest=manifest._replace(digest=digest, **said), payload=payload)
    if right is not None:
        store.quarantine(key, manifest.digest)
    assert store.put([wrong])


@pytest.mark.parametrize("whose", ["another session's", "another position's", "another tenant's", "another model's"])
def test_a_valid_page_in_another_place_is_refused(engine, store, asked, whose):
    """The page before it is brought, and nothing behind it."""
    prompt, right, keys = asked["mine"]
    assert ask(engine, prompt) == (right, len(keys), 0)
    other = {
        "another session's": asked["others"][2][1], "another position's": keys[2],
        "another tenant's": asked["salted"][2][1],
        "another model's": b"another model".ljust(32) + keys[1][32:],
    }[whose]  # fmt: skip
    if whose == "another model's":  # it is the page of the position before, so that it is another one's
        put_under(store, other, keys[0])

    put_under(store, keys[1], other)

    assert ask(engine, prompt) == (right, 1, 1)
    answer, loaded, refused = ask(engine, prompt)  # it was put aside, and what was computed may be there again
    assert (answer, refused) == (right, 0)
    assert loaded in (1, len(keys))


def test_another_tenants_pages_are_under_other_keys(engine, asked):
    """The salt is in the hashes of all pages: nobody finds what was computed for another one, nor learns of it."""
    prompt, right, keys = asked["mine"]
    _, answer, salted = asked["salted"]
    assert answer == right
    assert not set(keys) & set(salted)

    assert ask(engine, prompt, "nobody's yet") == (right, 0, 0)
    assert ask(engine, prompt, "a tenant's") == (right, len(keys), 0)
