"""The gap in service between two tenants, as it is read from the journal."""

from typing import Any

import pytest

from tests.prove.fairness import gap


def request(user: str, came_s: float, sent_s: float | None, ended_s: float, prompt: int = 100, answer: int = 0) -> Any:
    """The facts of one request; one that was never sent was refused."""
    name = f"{user} {came_s}"
    about = {"request_id": name, "user": user}
    settled = {"kind": "request.settled", "at": ended_s, "took_s": ended_s - came_s, **about}
    if sent_s is None:
        return [settled | {"ending": "refused", "prompt_tokens": 0, "completion_tokens": 0}]
    used = {"waited_s": sent_s - came_s, "prompt_tokens": prompt, "completion_tokens": answer}
    return [{"kind": "leg.opened", "at": sent_s, **about}, settled | {"ending": "finished"} | used]


def test_what_counts_is_how_far_one_gets_ahead_while_both_wait():
    """Two of one in a row and then two of the other are two prompts, not none."""
    waiting = request("a", 0.0, None, 10.0) + request("b", 0.0, None, 10.0)
    turns = [("a", 1.0), ("a", 2.0), ("b", 3.0), ("b", 4.0)]
    facts = waiting + [fact for user, at_s in turns for fact in request(user, 0.5, at_s, at_s + 0.1)]

    found = gap(facts, "a", "b")

    assert (found.widest, found.seconds, found.served) == (200.0, 10.0, (200.0, 200.0))


def test_a_time_in_which_only_one_waits_says_nothing():
    """Whoever is alone may have all."""
    alone = [fact for at_s in (1.0, 2.0, 3.0) for fact in request("a", at_s - 0.5, at_s, at_s + 0.1)]

    found = gap(alone + request("b", 20.0, 21.0, 22.0), "a", "b")

    assert (found.widest, found.seconds) == (0.0, 0.0)


def test_answers_count_twice_and_as_they_come():
    """Half of an answer that comes while both wait is half of it."""
    waiting = request("a", 2.0, None, 9.0) + request("b", 2.0, None, 9.0)
    facts = waiting + request("a", 0.0, 0.0, 4.0, prompt=1, answer=100)

    assert gap(facts, "a", "b").widest == pytest.approx(2 * 100 / 2, abs=2 * 100 / 16)


def test_the_bound_is_of_the_longest_prompt_or_of_what_servers_held():
    """Twice one, or four times the other, since tokens of answers weigh two."""
    long = request("a", 0.0, 1.0, 2.0, prompt=5_000)
    many = [fact for number in range(3) for fact in request("b", number / 10, 3.0, 4.0, prompt=1_000, answer=1_000)]

    assert gap(long, "a", "b").bound == 2 * 2 * 5_000
    assert gap(long + many, "a", "b").bound == 2 * 2 * 3 * 2_000
