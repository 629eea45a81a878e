"""Charges at another price: exact, once, and only of what was not forgiven since."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.books import replay
from gateway.books.ledger.contract import Place
from gateway.books.ledger.orders import digest_of
from gateway.books.repricing import due, name_of, spans
from guards.money import DOLLAR, Price, Tokens

ORG, KEY = Place("org:acme", "micro-dollars", "2026-11"), Place("key:key_1", "tokens", "total")
TEAM = Place("team:acme/search", "micro-dollars", "total")
OLD, NEW = Price(DOLLAR, 2 * DOLLAR, DOLLAR // 10, 2 * DOLLAR), Price(3 * DOLLAR, DOLLAR, DOLLAR // 3, 4 * DOLLAR)


USUAL = Tokens(10, 5)


def request(number, used=USUAL, *, model="tiny", price=OLD, places=(ORG, KEY), kind="request.settled", **more):
    cost = price.of(used)
    charges = [(at, cost if at.unit == "micro-dollars" else used.input + used.output) for at in places]
    return {
        "kind": kind, "request_id": f"r{number}", "model": model, "prompt_tokens": used.input,
        "completion_tokens": used.output, "cached_tokens": used.cached, "reasoning_tokens": used.reasoning,
        "charged_tokens": used.input + used.output, "cost": cost, "charges": charges, **more,
    }  # fmt: skip


def write(path, facts):
    lines = [msgspec.json.encode({"seq": seq, "at": 1000.0 + seq, **fact}) for seq, fact in enumerate(facts, 1)]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def looked(path, prices, since_s=0.0):
    return due(replay.facts(path), prices, spans(path), since_s)


def corrected(path, facts, found):
    """The same facts, and those of a correction that was made."""
    told = [
        {"kind": "ledger.corrected", "request_id": f"correction-{number}", **one.about, "charges": one.charges}
        for number, one in enumerate(found.corrections())
    ]
    return write(path, [*facts, *told])


USED = st.builds(
    lambda i, o, c, r: Tokens(i, o, min(i, c), min(o, r)), *[st.integers(0, 5000)] * 2, *[st.integers(0, 900)] * 2
)
PRICES = st.builds(Price, *[st.integers(0, 20 * DOLLAR)] * 4)


@settings(max_examples=60, deadline=None)
@given(used=st.lists(USED, min_size=1, max_size=12), old=PRICES, new=PRICES, later=PRICES)
def test_the_difference_is_what_would_have_been_charged(tmp_path_factory, used, old, new, later):
    """Request by request, each rounded up; put right once, the same prices come to nothing, and others to theirs."""
    path = tmp_path_factory.mktemp("journal") / "j"
    facts = [request(number, one, price=old) for number, one in enumerate(used)]
    found = looked(write(path, facts), {"tiny": new})

    assert found.accounts.get(ORG, 0) == sum(new.of(one) - old.of(one) for one in used)
    assert KEY not in found.accounts
    corrected(path, facts, found)
    assert looked(path, {"tiny": new}).corrections() == []
    assert replay.replay(path).charged[ORG] == sum(map(new.of, used))
    assert looked(path, {"tiny": later}).accounts.get(ORG, 0) == sum(later.of(one) - new.of(one) for one in used)


def test_the_last_word_on_a_price_counts(tmp_path):
    """Of several that are about the same requests."""
    facts = [request(1), request(2)]
    path = write(tmp_path / "j", facts)
    for price in (NEW, Price(0, 0, 0, 0), OLD, NEW, OLD):
        told = looked(path, {"tiny": price}).corrections()
        facts += [{"kind": "ledger.corrected", "request_id": "c", **one.about, "charges": one.charges} for one in told]
        write(path, facts)

        assert replay.replay(path).charged[ORG] == 2 * price.of(USUAL)
        assert {spans(path).cost(fact) for fact in replay.facts(path) if fact.prompt_tokens} == {price.of(USUAL)}


def test_only_models_with_a_price_are_looked_at(tmp_path):
    """Others stay as they were charged."""
    path = write(tmp_path / "j", [request(1), request(2, model="other")])

    assert looked(path, {"tiny": NEW}).accounts == {ORG: 35 - 20}
    assert looked(path, {"tiny": OLD}).corrections() == []


def test_a_span_begins_where_it_is_said_to(tmp_path):
    """What came before is not touched, and a longer span later touches only that."""
    facts = [request(number) for number in range(10)]
    path = write(tmp_path / "j", facts)

    late = looked(path, {"tiny": NEW}, since_s=1000.0 + 8)
    corrected(path, facts, late)

    assert (late.first, late.last, late.accounts[ORG]) == (8, 10, 3 * 15)
    assert looked(path, {"tiny": NEW}).accounts[ORG] == 7 * 15


@pytest.mark.parametrize("kind", [("ledger.corrected", "reset"), ("ledger.pruned", "")])
def test_what_was_forgiven_is_not_charged(tmp_path, kind):
    """An account that was begun anew, or let go of, owes nothing for what came before."""
    name, why = kind
    gone = {"kind": name, "request_id": "correction-x/0", "why": why, "charges": [(ORG, -20)]}
    path = write(tmp_path / "j", [request(1, places=(ORG, TEAM)), gone, request(2, places=(ORG, TEAM))])

    assert looked(path, {"tiny": NEW}).accounts == {ORG: 15, TEAM: 30}


def test_charges_that_come_in_several_facts_are_one_request(tmp_path):
    """Where it has many accounts, or was charged late, later facts have no tokens of their own."""
    places = [Place(f"user:{n}", "micro-dollars", "total") for n in range(4)]
    rest = {"kind": "request.charged", "request_id": "r1", "model": "tiny", "charges": [(ORG, 20)]}
    late = {"kind": "request.charged", "request_id": "r2", "model": "tiny", "charges": [(TEAM, 20)]}
    facts = [request(1, places=places, more=True), rest, request(2, places=(), unsettled=True), request(3), late]
    path = write(tmp_path / "j", facts)

    found = looked(path, {"tiny": NEW})

    assert found.accounts == dict.fromkeys(places, 15) | {ORG: 30, TEAM: 15}
    assert found.models["tiny"].requests == 3


def test_what_was_not_charged_costs_nothing_at_any_price(tmp_path):
    """A prompt may be counted, and its request end before any of the answer went out."""
    path = write(tmp_path / "j", [request(1) | {"charged_tokens": 0, "cost": 0, "charges": [(ORG, 0)]}])

    assert looked(path, {"tiny": NEW}).corrections() == []


def test_who_looks_at_the_same_journal_means_the_same_correction(tmp_path):
    """So of two at once one is made; after it the next has another name, and so has a journal begun anew."""
    facts = [request(1)]
    path = write(tmp_path / "j", facts)
    first = name_of(path, spans(path))
    again = name_of(path, spans(path))
    corrected(path, facts, looked(path, {"tiny": NEW}))
    later = name_of(path, spans(path))
    anew = write(tmp_path / "k", [request(2)])

    assert first == again
    assert len({first, later, name_of(anew, spans(anew))}) == 3


def test_a_repricing_is_the_same_order_while_the_journal_grows(tmp_path):
    """What it comes to is not what was asked; a price or another beginning is."""
    path = write(tmp_path / "j", [request(number) for number in range(3)])
    asked = looked(path, {"tiny": NEW}).corrections()
    grown = looked(write(path, [request(number) for number in range(9)]), {"tiny": NEW}).corrections()
    dearer = looked(path, {"tiny": NEW._replace(input=NEW.input + 1)}).corrections()
    later = looked(path, {"tiny": NEW}, since_s=1002.0).corrections()

    assert asked != grown
    assert digest_of(asked) == digest_of(grown)
    assert len({digest_of(one) for one in (asked, dearer, later, looked(path, {"tiny": OLD}).corrections())}) == 4


def test_no_journal_has_no_spans(tmp_path):
    """And a damaged line that could be one is told."""
    (tmp_path / "bad").write_bytes(b'{"seq":1,"why":"repriced"\n')

    assert not spans(tmp_path / "none")
    with pytest.raises(replay.Damaged):
        spans(tmp_path / "bad")
