"""kill -9 of the gateway, anywhere: nothing is held after it, nobody is undercharged, no budget is exceeded."""

import asyncio
import random
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.books.keys import Keys
from tests.crowd import Account, Crowd, Numbers, accounts, spend_up, wrong
from tests.dying import POINTS
from tests.processes import ForkedGateway as Gateway
from tests.processes import until
from tests.scenarios.asking import ask, chat, error, order

pytestmark = pytest.mark.slow

SEED = 20261121
KILLS = 20  # here; `make prove` does ten times as many, with all of the crowd
CLIENTS = 60
DIE_S_MAX = 120.0


@pytest.fixture
def start(tmp_path, house):
    """Start gateways on one folder, one after the other; whatever becomes of the test, none outlives it."""
    with ExitStack() as left:
        yield lambda **options: left.enter_context(Gateway(tmp_path, [house.active.url], **options))


def again(gateway: Gateway, start) -> Gateway:
    """Start one where another has died."""
    gateway.process.wait()
    return start()


async def sound(gateway: Gateway, known: list[Account]) -> None:
    """All that must be so after any death; then what is left of an account can be spent, and the journal goes on."""
    numbers = Numbers(gateway.data / "journal.jsonl")
    assert wrong(gateway, known) == []
    assert numbers.holes() == []
    await spend_up(gateway, known[0])
    assert gateway.stop() == 0
    assert numbers.holes() == []
    assert gateway.faults() == []


async def test_kills_at_random_moments(start):
    """Twenty kills by seed under a crowd on small budgets; what is left of budgets can be spent, to the token."""
    gateway = start()
    rng = random.Random(SEED)
    numbers = Numbers(gateway.data / "journal.jsonl")
    known = accounts(gateway, 30, rng)
    asked = refused = 0
    try:
        for number in range(KILLS):
            fresh = [one for one in known if not one.spent_up]
            fresh += (more := accounts(gateway, max(0, 20 - len(fresh)), rng))
            known += more
            crowd = Crowd(gateway.port, fresh, rng)
            running = asyncio.create_task(crowd.run(CLIENTS))
            await asyncio.sleep(rng.uniform(0.02, 0.8))
            gateway.kill()
            await running
            asked, refused = asked + crowd.asked, refused + crowd.refused

            gateway = await asyncio.to_thread(again, gateway, start)

            assert [number, *wrong(gateway, known), *numbers.holes()] == [number], f"seed {SEED}"
            if number % 5 == 4:
                await spend_up(gateway, rng.choice(fresh))
        assert gateway.stop() == 0
        assert gateway.faults() == []
    finally:
        gateway.kill()
    assert (asked > 500, refused > 20) == (True, True), (asked, refused)  # the budgets did bind
    assert numbers.last > 1000


@pytest.mark.parametrize("point", POINTS)
async def test_kills_at_a_chosen_point(start, point):
    """Around a commit of each kind, within one that also makes a checkpoint, and in mid-write of the journal."""
    rng = random.Random(f"{SEED} {point}")
    command = [sys.executable, "-m", "tests.dying", f"{point}:{rng.randint(3, 20)}"]
    gateway = start(command=command)
    known = accounts(gateway, 8, rng)
    crowd = Crowd(gateway.port, known, rng)

    async with asyncio.timeout(DIE_S_MAX):
        await crowd.run(20)
    died_of = await asyncio.to_thread(gateway.process.wait, DIE_S_MAX)
    gateway = await asyncio.to_thread(again, gateway, start)

    with gateway:
        assert died_of == -signal.SIGKILL
        await sound(gateway, known)


async def test_kill_between_the_hold_and_the_first_token(start):
    """A hold whose answer has not begun is charged in full, since nobody can know; the rest can be spent."""
    gateway = start()
    (account,) = accounts(gateway, 1, random.Random(SEED))
    running = asyncio.create_task(ask(gateway, account.secret, chat(order(tokens=50, ttft_s=30), max_tokens=20)))
    held = await asyncio.to_thread(until, lambda: sum(one.held for one in gateway.balances()))

    gateway.kill()
    await asyncio.wait([running])
    gateway = await asyncio.to_thread(again, gateway, start)

    with gateway:
        assert (gateway.balance(account.secret).spent, gateway.balance(account.secret).held) == (held, 0)
        await sound(gateway, [account])


async def test_kill_during_the_drain(start):
    """SIGTERM, and SIGKILL while streams finish, as an impatient supervisor does it."""
    gateway = start()
    rng = random.Random(SEED)
    known = accounts(gateway, 10, rng)
    crowd = Crowd(gateway.port, known, rng)
    running = asyncio.create_task(crowd.run(20))
    await asyncio.sleep(0.6)

    gateway.terminate()
    await asyncio.to_thread(until, lambda: '"gateway.stopping"' in gateway.log())
    gateway.kill()
    await running
    gateway = await asyncio.to_thread(again, gateway, start)

    with gateway:
        await sound(gateway, known)


MAKER = """
import pathlib, sys
from gateway.books.keys import Keys
keys = Keys(pathlib.Path(sys.argv[1]))
while True:
    print(keys.create("somebody")[0], flush=True)
"""


def make_keys(store: Path) -> "subprocess.Popen[str]":
    """A process that makes one key after the other, and shows each."""
    return subprocess.Popen([sys.executable, "-c", MAKER, str(store)], stdout=subprocess.PIPE, text=True)


async def test_kill_while_keys_are_made(start):
    """Whoever dies while keys are made, maker or gateway: every key that was shown works, and the store is whole."""
    gateway = start()
    rng = random.Random(SEED)
    shown: list[str] = []
    for number in range(6):
        store = gateway.data / "keys.db"
        maker = make_keys(store)
        assert maker.stdout is not None
        shown.append(maker.stdout.readline().strip())
        await asyncio.sleep(rng.uniform(0, 0.05))
        if number % 2:
            gateway.kill()
        maker.kill()
        shown += maker.stdout.read().split()  # to the end, which may be half a line
        maker.wait()
        maker.stdout.close()
        if number % 2:
            gateway = await asyncio.to_thread(again, gateway, start)
    shown = [secret for secret in shown if len(secret) == len(shown[0])]

    with gateway:
        keys = Keys(gateway.data / "keys.db")
        assert {keys.tenant(secret).user for secret in shown} == {"somebody"}
        keys.close()
        assert len(shown) > 6
        for secret in (shown[0], shown[-1]):
            assert (await ask(gateway, secret, chat(order(tokens=3)))).status == 200
        assert error(await ask(gateway, "hf-unknown", chat()))["code"] == "invalid_api_key"
        assert gateway.faults() == []


def test_every_point_is_a_place_in_the_source():
    """Points that no longer exist would kill nobody, and prove nothing."""
    source = Path("gateway/books/ledger/writer.py").read_text() + Path("gateway/books/journal_file.py").read_text()

    assert "execute(KEEP" in source
    assert "write_all(descriptor, data)" in source
