"""Running requests hear of what changed, also when it could not be told at once."""

import asyncio

import pytest

from gateway.books.keys import News, Order
from gateway.changes import AGAIN_FOR_S, AGAIN_S, Changes
from gateway.deadlines import LAPSED, REVOKED, STOPPED, Deadlines, Expired
from guards.budget import Limit, Line, Unit
from guards.refusal import Reason, Refused

LINE, OTHER = Line("org:acme", Limit(5)), Line("org:acme", Limit(5, unit=Unit.OUTPUT))
BROKEN = Refused(Reason.BOOKS, "broken")


class Books:
    """News that are told once, and a ledger that fails as often as told to."""

    def __init__(self):
        self.news = News(frozenset(), ())
        self.failures = 0
        self.told = []

    def take(self):
        news, self.news = self.news, News(frozenset(), ())
        if isinstance(news, Exception):
            raise news
        return news

    def carry_out(self, name, said):
        answer = asyncio.get_running_loop().create_future()
        if self.failures:
            self.failures -= 1
            answer.set_exception(BROKEN)
        else:
            self.told.append((name, said))
            answer.set_result([])
        return answer

    def relimit(self, line):
        answer = asyncio.get_running_loop().create_future()
        if self.failures:
            self.failures -= 1
            answer.set_exception(BROKEN)
        else:
            self.told.append(line)
            answer.set_result(True)
        return answer


@pytest.fixture
def books():
    return Books()


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


CLOCK = Clock()


def changes_of(books, deadlines=None):
    return Changes(books.take, books, deadlines or Deadlines(60), CLOCK, books.carry_out)


async def look(changes, after_s=0.0):
    CLOCK.now_s += after_s
    changes.look()
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_of_a_revoked_key_end(books):
    """And nobody else's; each with the reason."""
    deadlines = Deadlines(60)
    changes = changes_of(books, deadlines)
    verdicts = {}

    async def request(key_id):
        with pytest.raises(Expired) as expired, deadlines.one(key_id):
            await asyncio.sleep(60)
        verdicts[key_id] = expired.value.verdict

    tasks = [asyncio.create_task(request(key_id)) for key_id in ("a", "b", "c")]
    await asyncio.sleep(0)
    books.news = News(frozenset({"a", "c", "x"}), ())
    await look(changes)
    await asyncio.wait(tasks, timeout=0.1)

    assert verdicts == {"a": REVOKED, "c": REVOKED}
    deadlines.stop()
    await asyncio.gather(*tasks)


async def test_requests_are_ended_by_whose_they_are():
    """Those of the set, once, with the verdict that came first."""
    deadlines, verdicts = Deadlines(60), []
    mine, other = object(), object()

    async def request(whose):
        with pytest.raises(Expired) as expired, deadlines.one("a", whose=whose):
            await asyncio.sleep(60)
        verdicts.append((whose, expired.value.verdict))

    tasks = [asyncio.create_task(request(whose)) for whose in (mine, other, mine)]
    await asyncio.sleep(0)
    assert deadlines.end({mine}, REVOKED) == 2
    assert deadlines.end({mine}, STOPPED) == 0
    await asyncio.wait(tasks, timeout=0.1)

    assert verdicts == [(mine, REVOKED)] * 2
    deadlines.stop()
    await asyncio.gather(*tasks)


async def test_a_key_that_was_let_in_and_then_revoked_ends_when_it_begins(books):
    """It was known when its head came, and its body took its time."""
    deadlines = Deadlines(60)
    books.news = News(frozenset({"a"}), ())
    await look(changes_of(books, deadlines))

    with pytest.raises(Expired) as expired, deadlines.one("a"):
        await asyncio.sleep(60)

    assert expired.value.verdict == REVOKED
    with deadlines.one("b"):
        await asyncio.sleep(0)


async def test_limits_are_told_to_the_ledger_until_it_has_them(books):
    """The newest of a kind; more than once, since a request may bring an old one after it, and then no more."""
    changes = changes_of(books)
    books.news, books.failures = News(frozenset(), (LINE, OTHER)), 1
    await look(changes)
    assert books.told == [OTHER]

    newest = Line("org:acme", Limit(6))
    books.news = News(frozenset(), (newest,))
    await look(changes)
    assert books.told == [OTHER, newest, OTHER]

    await look(changes, AGAIN_S / 2)
    assert len(books.told) == 3
    await look(changes, AGAIN_S)
    assert books.told[3:] == [newest, OTHER]

    await look(changes, AGAIN_FOR_S)
    await look(changes, AGAIN_FOR_S)
    assert len(books.told) == 7


async def test_a_slow_ledger_keeps_no_revocation_waiting(books):
    """While it is told of limits, keys are looked for all the same."""
    deadlines = Deadlines(60)
    changes = changes_of(books, deadlines)
    books.relimit = lambda line: asyncio.get_running_loop().create_future()
    books.news = News(frozenset(), (LINE,))
    await look(changes)

    books.news = News(frozenset({"a"}), (OTHER,))
    await look(changes, AGAIN_S)

    with pytest.raises(Expired), deadlines.one("a"):
        await asyncio.sleep(60)


async def test_a_key_store_that_cannot_be_read_is_looked_at_again(books):
    """It ends nothing."""
    changes = changes_of(books)
    books.news = BROKEN
    await look(changes)

    books.news = News(frozenset(), (LINE,))
    await look(changes)

    assert books.told == [LINE]


async def test_orders_are_carried_out(books, monkeypatch):
    """By their names; again while the ledger cannot be written, and one that nobody understands is no end of others."""
    monkeypatch.setattr("gateway.changes.AGAIN_S", 0.0)
    changes = changes_of(books)
    books.failures = 2
    books.news = News(frozenset(), (), (Order("a", "[]"), Order("b", "[]")))

    await look(changes)
    for _ in range(20):
        await asyncio.sleep(0)

    assert sorted(books.told) == [("a", "[]"), ("b", "[]")]


async def test_an_order_that_nobody_understands_ends_nothing(books):
    """It is in the log; what comes after it is heard."""
    changes = changes_of(books)
    changes._carry_out = lambda name, said: (_ for _ in ()).throw(ValueError("beans"))
    books.news = News(frozenset(), (LINE,), (Order("a", "beans"),))

    await look(changes)

    assert books.told == [LINE]


async def test_requests_end_whose_rights_have_lapsed():
    """Those of whose limits it is said, with their verdict; others go on, and so does whoever comes later."""
    deadlines = Deadlines(60)
    ended = []

    async def serve(key_id, lines):
        with pytest.raises(Expired) as expired, deadlines.one(key_id, lines):
            await asyncio.sleep(60)
        ended.append((key_id, expired.value.verdict))

    running = [asyncio.create_task(serve(name, [Line(f"key:{name}", Limit(5))])) for name in ("a", "b")]
    await asyncio.sleep(0)

    assert deadlines.lapse(lambda lines: lines[0].scope == "key:a") == 1
    await running[0]
    assert deadlines.lapse(lambda lines: lines[0].scope == "key:a") == 0
    assert ended == [("a", LAPSED)]
    deadlines.stop()
    await running[1]
