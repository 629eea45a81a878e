"""The simulation can fail: each guard, broken once, is caught by an invariant within some hundred worlds."""

import re
from itertools import islice

import pytest

from tests.sim.mutant import Mutant
from tests.sim.run import failures
from tests.sim.test_scenarios import ends_with_its_deadline

HOLD = "gateway.books.ledger.hold:Hold"
RELAY = "gateway.stream.relay:Relay"
RACES = "gateway.stream.races:Races"
CHARGES = "__import__('guards.claim').claim.charges(hold.used, hold._grant.cover.price)"
TOO_SOON = f"Charged(hold.request_id, [(at, {CHARGES}[at.unit]) for at in hold._grant.places], hold.used)"
LEAVES = "self._fleet.leave(one.replica, one.likely)"
SETTLE_AGAIN = "Settlement(self._ledger, self.request_id, self.used); Settlement("

MUTANTS = [
    # -- the budget
    Mutant("meter ignores the lease", "guards.budget:Meter.spend", "tokens <= room", "True", "counted"),
    Mutant(
        "meter gets more than was leased",
        "guards.budget:Meter.granted",
        "output(self.wanted)",
        "output(self.wanted) + 1",
        "covered is",
    ),
    Mutant(
        "what others hold is free",
        "guards.budget:Account.free",
        "limit - spent - held",
        "limit - spent",
        "is not the limit",
    ),
    Mutant("nothing is given back", "guards.budget:Meter.give_back", "self.spent -= tokens", "pass", "is charged|pays"),
    Mutant("settled twice", f"{HOLD}.__exit__", "Settlement(", SETTLE_AGAIN, "settled again"),
    Mutant(
        "not settled when cancelled",
        f"{HOLD}.__exit__",
        "assert not self._left",
        "if kind is asyncio.CancelledError:\n        return",
        "still holds",
    ),
    Mutant(
        "settled at what was leased",
        "gateway.books.ledger.steps:Settle.apply",
        "spent + owed",
        "spent + amount",
        "spent",
    ),
    Mutant(
        "a cancelled opening keeps its hold",
        "gateway.books.ledger.sqlite:Opening.give_back",
        "Settlement(self._ledger, self._request_id, Tokens())",
        "pass",
        "still holds",
        near=270,
    ),
    Mutant(
        "a settlement is tried once",
        "gateway.books.ledger.settlement:Settlement._answered",
        "self._try_later(error)",
        "pass",
        "still holds",
    ),
    Mutant(
        "a failed commit counts",
        "gateway.books.ledger.writer:Writer._commit",
        "return [unavailable() for _ in batch]",
        "return locals().get('answers') or [unavailable() for _ in batch]",
        "covered is|never settled|still holds",
    ),
    Mutant(
        "a top-up is held of the first limit only",
        "gateway.books.ledger.steps:Extend.apply",
        "needs[part.unit] - part.held",
        "needs[part.unit] - part.held if part is parts[0] else 0",
        "its holds sum to",
    ),
    Mutant(
        "the widest limit decides",
        "gateway.books.ledger.steps:Open._taken",
        "if used + needs[unit] > most",
        "if cell is cells[0] and used + needs[unit] > most",
        "AssertionError",
    ),
    Mutant(
        "all is priced as input",
        "gateway.books.ledger.steps:Settle.apply",
        "charges(self.used, price)",
        "charges(Tokens(self.used.output, self.used.input), price)",
        "spent|a step of the ledger failed|settlement_failed",
    ),
    Mutant(
        "the outbox is emptied before the journal is flushed",
        "gateway.books.outbox:Outbox.batch",
        "self._journal.appended",
        "0",
        "the journal says",
        worlds=3000,
        near=785,
    ),
    Mutant(
        "what is left in the outbox is not told",
        "gateway.books.outbox:Outbox.begin",
        "self.tell(one._replace(charges=due), anew",
        "(lambda *said, anew: None)(one, anew",
        "the journal says",
    ),
    Mutant(
        "what the journal has is told again",
        "gateway.books.outbox:Outbox.begin",
        "(one.request_id, at) not in known",
        "at not in known",
        "the journal says",
    ),
    Mutant(
        "the journal hears of a charge before the ledger has it",
        "gateway.record:Record._settle",
        "hold.settlement.then = partial(self._settled, facts)",
        f"self._settled(dict(facts), {TOO_SOON}, True)",
        "the journal says",
        worlds=3000,
        near=510,
    ),
    Mutant(
        "a crash forgives what was held",
        "gateway.books.ledger.tables:charge_leftovers",
        "spent = spent + held, held = 0",
        "held = 0",
        "spent",
    ),
    Mutant("no top-up is asked for", f"{RELAY}._paid", "self.lease.top_up(self._granted)", "pass", "in a calm world"),
    # -- what is charged
    Mutant(
        "a prompt is charged by every leg",
        f"{RELAY}._charge_prompt",
        "prompts[choice.prompt] is not None",
        "False",
        "is charged",
    ),
    Mutant(
        "no prompt is charged",
        f"{RELAY}._charge_prompt",
        "if not self._paid(",
        "if False and self._paid(",
        "is charged|covered is",
    ),
    Mutant(
        "ids after a stop string are delivered",
        "gateway.stream.text:Transcript.add",
        "self.stopped is not None",
        "False",
        "is not what the oracle says",
        worlds=2000,
    ),
    Mutant(
        "text that was not made is charged",
        f"{RELAY}.close",
        "self.meter.spent - self.completion_tokens",
        "0",
        "is charged",
        near=560,
    ),
    # -- the stream
    Mutant(
        "a partial event outlives its leg",
        "gateway.stream.leg:Leg.__init__",
        "self._splitter = EventSplitter(self._limits.event_bytes)",
        "self._splitter = upstream.__dict__.setdefault('splitters', {}).setdefault("
        "id(receiver.stream) if receiver else id(self), EventSplitter(self._limits.event_bytes))",
        "there was a good server|the oracle says",
        worlds=3000,
        near=420,
    ),
    Mutant(
        "a cut connection is used again",
        "gateway.stream.upstream:Connection.reusable",
        "return self._taken and self._kept_alive and",
        "return",
        "the oracle says|two requests at once",
    ),
    Mutant(
        "what was said is not told to the next server",
        "gateway.stream.continuation:body",
        "[*prompt, *ids]",
        "[*prompt]",
        "is not what the oracle says",
    ),
    Mutant(
        "the rest may be as long as the whole",
        "gateway.stream.continuation:body",
        "max_tokens - len(ids)",
        "max_tokens",
        "is not what the oracle says",
    ),
    Mutant(
        "a server that failed is asked again",
        "gateway.flow:Flow._legs",
        "failed |= {running.replica}",
        "pass",
        "and there was a good server",
        worlds=2000,
    ),
    Mutant(
        "a client that has caught up is not served",
        "gateway.stream.outbox:Outbox._room",
        "part.leg.resume()",
        "pass",
        "in a calm world",
    ),
    # -- races
    Mutant("the loser of a race goes on", f"{RACES}.won", "loser.close()", "pass", "what another server brings"),
    Mutant(
        "the loser's tokens count",
        f"{RELAY}._event",
        "choice.owner is not part",
        "False",
        "is not what the oracle says",
        3000,
        near=130,
    ),
    # -- what must come back
    Mutant("load stays after a leg", "gateway.legs:Legs.take", LEAVES, "pass", "load"),
    Mutant("load stays after a request", "gateway.legs:Legs.__exit__", LEAVES, "pass", "load"),
    Mutant("tokens stay after a leg", "gateway.legs:Legs.take", "one.likely", "0", "tokens"),
    Mutant("legs outlive their request", "gateway.legs:Legs.__exit__", "one.leg.close()", "pass", "streams silent"),
    Mutant("a silence is never over", "gateway.stream.leg:Leg._release", "self._watch.over()", "pass", "streams"),
    Mutant(
        "a probe outlives its request",
        "gateway.visits:Visits.close",
        "self._end(visit, Outcome.NEUTRAL)",
        "pass",
        "waits for a probe that nobody runs",
        near=790,
    ),
    # -- the fleet
    Mutant(
        "the last replica may be ejected",
        "gateway.fleet.replicas:Fleet._examine",
        "and await self._others(replica)",
        "",
        "the last one that was up",
        worlds=1500,
    ),
    Mutant(
        "a batch that failed is remembered",
        "gateway.books.ledger.overlay:Overlay.ended",
        "if committed",
        "if True",
        "its holds sum to|still holds",
    ),
    Mutant(
        "events that waited for a lease are lost",
        f"{RELAY}._granted",
        "self.events(part, waiting)",
        "pass",
        "the oracle",
    ),
    Mutant(
        "nobody comes back",
        "gateway.fleet.replicas:Fleet._warm",
        "if answered is False else Probe.GOOD",
        "",
        "was not taken back",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_guard_breaks_a_world(mutant, monkeypatch):
    """Within so many worlds, an invariant names what is wrong."""
    mutant.put_in(monkeypatch)

    found = next(islice(failures(mutant.seeds), 1), None)

    assert found is not None, f"{mutant.worlds} worlds did not notice: {mutant.name}"
    print(f"{mutant.name}: world {found.seed}: {found.why[:200]}")
    assert re.search(mutant.caught, found.why)


def test_a_deadline_that_took_a_budget_s_last_words_would_be_noticed(monkeypatch):
    """It comes in the very turn in which the budget ends the stream: no chance would find that often."""
    before, after = "answer.fail(*expired.verdict)", "answer._cut = answer.fail(*expired.verdict)"
    ends_with_its_deadline().run()

    Mutant("the last words are lost", "gateway.flow:Flow.serve", before, after, "").put_in(monkeypatch)

    with pytest.raises(AssertionError, match=r"DONE. False"):
        ends_with_its_deadline().run()
