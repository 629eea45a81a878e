"""Real vLLM with the plugin: whatever is done to resident pages, the answers are those of an unharmed run."""

import random

import pytest

from tests.vllm_plugin.real.engine import Engine, prompts
from tests.vllm_plugin.real.injector import KINDS

TOKENS = 12
BLOCK = 32


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("plugin"), {"scrub": "all"})
    yield engine
    engine.stop()


@pytest.fixture
def families(engine):
    """Prompts with shared prefixes, and what they are answered with when nothing is wrong: [(prompt, answer)]."""
    engine.forget()
    found = [
        [(prompt, engine.ask(prompt, TOKENS)) for prompt in family]
        for family in prompts(7, families=4, each=3, shared=100, own=80)
    ]
    engine.forget()
    return found


def between(engine, families, seed: int) -> int:
    """Damage a page between two requests. Returns how many bad pages were counted."""
    rng = random.Random(seed)
    (first, _), (second, right) = rng.sample(rng.choice(families), 2)
    engine.keep()
    if rng.random() < 0.5:
        first = second
    name = engine.add(first, TOKENS)
    engine.run([name])
    shared = len(first) if first is second else 100
    hit = (shared - 1) // BLOCK
    number = rng.randrange(hit)
    block, other = engine.tables[name][number], engine.tables[name][(number + 1) % hit]
    kind = rng.choice(KINDS)
    before = engine.metric("holdfast_pages_corrupt")
    # A page that was hit, and not written, in that first run is as it was before it.
    changed = engine.damage(kind, block, other, seed)
    assert changed or kind == "replay", f"seed {seed}"

    assert engine.ask(second, TOKENS) == right, f"seed {seed}: {kind} in page {number}"
    found = int(engine.metric("holdfast_pages_corrupt") - before)
    assert (found >= 1) == changed, f"seed {seed}: {kind} in page {number}"
    return found


def test_pages_damaged_between_requests_are_never_read(engine, families):
    """Twelve by seed; fifty below."""
    assert sum(between(engine, families, seed) for seed in range(12)) >= 12
    assert engine.metric("holdfast_pages_corrupt", where="gate") >= 12


@pytest.mark.prove
def test_fifty_damaged_pages_are_never_read(engine, families):
    """Of all kinds."""
    assert sum(between(engine, families, seed) for seed in range(100, 150)) >= 48


def running(engine, families, seed: int) -> tuple[bool, int]:
    """Damage a page while requests run which hold it, some of them greedy, some seeded. Their answers are compared.

    Returns whether it was more than an end cut off, which may leave all as it was, and how many bad pages were counted.
    """
    rng = random.Random(seed)
    prompts = [prompt for prompt, _ in rng.choice(families)]
    sampling = [{} if rng.random() < 0.5 else {"temperature": 1.0, "seed": seed + i} for i in range(len(prompts))]
    delays = [0] + [rng.randrange(6) for _ in prompts[1:]]
    spoil = (rng.randrange(6, 25), rng.choice(KINDS))

    def run(damaged: bool) -> list[list[int]]:
        engine.forget()
        engine.keep()
        names: list[str] = []
        for step in range(spoil[0]):
            names += [
                engine.add(prompt, 40, **how)
                for prompt, how, delay in zip(prompts, sampling, delays, strict=True)
                if delay == step
            ]
            engine.step()
        if damaged:
            table = engine.tables[rng.choice(names)]
            number = rng.randrange(len(table))
            changed = engine.damage(spoil[1], table[number], table[number - 1], seed)
            if spoil[1] == "replay" and not changed:  # its block may have held the very same page before
                changed = engine.damage("flip", table[number], seed=seed)
            assert changed or spoil[1] == "truncate"
        return engine.run(names)

    right = run(damaged=False)
    before = {name: engine.metric(f"holdfast_{name}") for name in ("pages_corrupt", "requests_recomputed")}
    assert run(damaged=True) == right, f"seed {seed}: {spoil}"
    assert all(reason == "length" for reason in engine.ended.values())
    found, recomputed = (int(engine.metric(f"holdfast_{name}") - then) for name, then in before.items())
    assert (found > 0) == (recomputed > 0), f"seed {seed}: {spoil}"
    return spoil[1] != "truncate", found


def test_pages_damaged_while_requests_hold_them_spoil_nothing(engine, families):
    """Full ones and those being filled: the step is thrown away, and computed anew."""
    found = [running(engine, families, seed) for seed in range(6)]

    assert all(bad for whole, bad in found if whole)
    assert sum(bad > 0 for _, bad in found) >= 4


@pytest.mark.prove
def test_thirty_pages_damaged_while_requests_hold_them_spoil_nothing(engine, families):
    """Of all kinds."""
    found = [running(engine, families, seed) for seed in range(200, 230)]

    assert all(bad for whole, bad in found if whole)
    assert sum(bad > 0 for _, bad in found) >= 20


def test_nothing_is_found_where_nothing_is(engine, families):
    """Alone and at once, with shared prefixes: 48 requests; two hundred below."""
    assert unharmed(engine, families, rounds=4) == 48


@pytest.mark.prove
def test_two_hundred_clean_requests_raise_no_alarm(engine, families):
    """And are served from the cache as without the plugin."""
    assert unharmed(engine, families, rounds=17) == 204


def unharmed(engine, families, rounds: int) -> int:
    """How many requests, of which each was answered as it should be, and none with an alarm."""
    corrupt = engine.metric("holdfast_pages_corrupt")
    hits = engine.metric("holdfast_prefix_hit_tokens")
    for number in range(rounds):
        family = [one for family in families for one in family]
        random.Random(number).shuffle(family)
        names = []
        for prompt, _ in family:
            names.append(engine.add(prompt, TOKENS))
            if number % 2:
                engine.step()
        assert engine.run(names) == [right for _, right in family]
    assert engine.metric("holdfast_pages_corrupt") == corrupt
    assert engine.metric("holdfast_chains_broken") == 0
    # All that is full of a prompt but its last token, each time but the first.
    assert engine.metric("holdfast_prefix_hit_tokens") - hits >= (rounds - 1) * 12 * 160
    return rounds * len(family)


def test_requests_of_two_salts_share_no_page(engine, families):
    """Each has its own, and reads it again."""
    (prompt, right), *_ = families[0]
    hits = engine.metric("holdfast_prefix_hit_tokens")
    assert [engine.ask(prompt, TOKENS, salt=salt) for salt in "ab"] == [right, right]
    assert engine.metric("holdfast_prefix_hit_tokens") == hits
    assert [engine.ask(prompt, TOKENS, salt=salt) for salt in "ab"] == [right, right]
    assert engine.metric("holdfast_prefix_hit_tokens") == hits + 2 * 160


def test_answers_of_one_prompt_share_its_pages(engine, families):
    """n=2: both are what they are without damage, whoever of them held the page."""
    (prompt, _), *_ = families[1]
    how = {"n": 2, "temperature": 1.0, "seed": 5, "output_kind": "final"}

    def both(damaged: bool) -> list[list[int]]:
        engine.forget()
        name = engine.add(prompt, 20, **how)
        for step in range(200):
            if step == 10 and damaged:
                engine.damage("zero", engine.tables[f"1_{name}"][2])
            if name in engine.ended:
                return engine.done[name]
            engine.step()
        raise AssertionError("not ended")

    right = both(damaged=False)
    assert len(right) == 2
    assert both(damaged=True) == right


def test_a_page_filled_from_a_bad_one_is_not_read_either(engine, families):
    """It has a valid seal, of what should never have been computed: it is withdrawn, and filled anew."""
    prompt = families[2][0][0][: 4 * BLOCK - 2]
    engine.forget()
    right = engine.ask(prompt, 20)
    engine.forget()
    name = engine.add(prompt, 20)
    while len(engine.tokens.get(name, [])) < 2:
        engine.step()
    filling = engine.tables[name][3]
    withdrawn = engine.metric("holdfast_pages_withdrawn")
    engine.damage("zero", engine.tables[name][1])
    engine.step()  # fills the page, and finds the other one bad

    assert engine.metric("holdfast_pages_withdrawn") == withdrawn + 1
    assert engine.scheduler.kv_cache_manager.block_pool.blocks[filling].block_hash is None
    assert engine.run([name]) == [right]
    assert engine.ask([*prompt, *right[:10]], 10) == right[10:]
