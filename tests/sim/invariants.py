"""What must hold in every world: after each step, after each commit, at a client's end, and when all is over."""

import json
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gateway.books.ledger.contract import Charged, Grant, More, Place
from gateway.books.ledger.steps import Extend, Open, Settle
from gateway.books.ledger.writer import Ticket
from guards.breaker import State
from guards.budget import Unit
from guards.claim import Load, charges, shares
from guards.money import Tokens
from guards.refusal import Ending, Refused
from tests.sim.client import Client
from tests.sim.gateway import outrun
from tests.sim.oracle import Said
from tests.sim.plan import PRICE

if TYPE_CHECKING:
    from tests.sim.world import World

OVERTIME_S = 60.0  # beyond total_s: a late ledger, three /tokenize, text from a slow /detokenize
UNHEALTHY_S = 10.0  # how long after a fault, looks and all, an ejection is no surprise


def after_step(clients: Iterable[Client], replicas: Iterable[Any]) -> str | None:
    """Delivered ≤ counted ≤ leased, and loads that can be."""
    for client in clients:
        answer = client.record.answer if client.record is not None else None
        if answer is not None and not answer.meter.spent <= answer.meter.leased:
            return f"{client.name} counted {answer.meter.spent} of {answer.meter.leased} tokens leased"
        if answer is not None and outrun(answer):
            return f"{client.name} goes on being told what another server brings"
        bound = client.held if client.charged is None else client.charged
        if any(client.got) and not covered(client.got, bound):
            return f"{client.name} was delivered {client.got}, covered is {bound}"
    for one in replicas:
        if not 0 <= one.pulse.silent <= one.pulse.streams <= one.load:
            return f"{one.name}: {one.pulse.silent} of {one.pulse.streams} streams silent, load {one.load}"
    return None


def after_commit(world: "World", batch: list[Ticket], answers: list[Any]) -> Iterable[str]:
    """held + spent + free = budget; every hold is settled once."""
    for ticket, answer in zip(batch, answers, strict=True):
        step = ticket.step
        if isinstance(answer, Exception) and not isinstance(answer, Refused):
            yield f"a step of the ledger failed: {answer!r} for {step}"
        elif isinstance(step, Open) and isinstance(answer, Grant):
            client = world.clients[step.request_id]
            client.held = dict(zip(answer.places, answer.cover.amounts, strict=True))
        elif isinstance(step, Extend) and isinstance(answer, More) and answer.cover is not None:
            client = world.clients[step.request_id]
            client.held = dict(zip(client.held or (), answer.cover.amounts, strict=True))
        elif isinstance(step, Settle):
            yield from _settled(world.clients[step.request_id], step.used, answer)
    yield from world.writer.audit()
    for at, account in world.writer.accounts():
        if not account.spent + account.held <= account.limit == world.budget(at):
            yield f"{at}: {account} of a budget of {world.budget(at)}"


def covered(load: Load, amounts: dict[Place, int] | None) -> bool:
    """Whether what is held, or charged, of each account is enough for what was delivered."""
    return amounts is not None and all(shares(load, PRICE)[Unit(at.unit)] <= amount for at, amount in amounts.items())


def _settled(client: Client, used: Tokens, answer: Any) -> Iterable[str]:
    if not isinstance(answer, Charged) or client.settled is not None:
        yield f"{client.name} is settled again, at {used}"
    client.settled = used.input + used.output
    client.charged = {at: charges(used, PRICE)[Unit(at.unit)] for at in client.held or ()}
    yield from _charge(client, client.settled)


def _charge(client: Client, spent: int) -> Iterable[str]:
    """What was charged is what was delivered: the prompt once, and the ids."""
    if client.call.stream and client.call.wants_ids:
        least, most = client.ids + client.prompt_least, client.ids + client.prompt_most
        if not (least <= spent <= most):
            yield f"{client.name} is charged {spent}, was delivered {least} to {most}"
    elif client.call.stream and spent and not client.seen.text and spent > client.prompt_most:
        yield f"{client.name} is charged {spent} for nothing"
    elif client.call.stream and client.seen.text and not spent:
        yield f"{client.name} is charged nothing for {client.seen.text}"


def at_end(world: "World", client: Client) -> Iterable[str]:
    """How one client's request must have ended."""
    if client.dead or client.turned_away:
        return
    if client.ended_s is None or client.ended_s - client.received_at > world.plan.total_s + OVERTIME_S:
        yield f"{client.name} did not end in time"
        return
    facts = world.settled(client)
    if not facts and world.plan.crashes_s:
        return  # it was not flushed; what it charged is told all the same
    if len(facts) != 1:
        yield f"{client.name} has {len(facts)} facts of its end"
        return
    ending, charged = facts[0]["ending"], facts[0]["charged_tokens"]
    if charged != (client.settled or 0) and not (client.recovered and charged <= (client.settled or 0)):
        yield f"{client.name}: {charged} tokens in the journal, {client.settled} in the ledger"
    if client.held is not None and client.settled is None:
        yield f"{client.name} was never settled"
    if client.outcome.startswith("refused") and (client.started or client.settled):
        yield f"{client.name} was refused, yet got {client.seen.text} and pays {client.settled}"
    if ending == Ending.FAULT:
        yield f"{client.name} ended by a fault"
    opened = sum(kind == "leg.opened" and fact["request_id"] == client.name for kind, fact in world.facts)
    enough = world.plan.legs >= len(world.servers) or opened < world.plan.legs
    if ending in (Ending.UPSTREAM_LOST, Ending.SILENT) and enough and any(one.blameless for one in world.servers):
        yield f"{client.name} was given up after {opened} of {world.plan.legs} legs, and there was a good server"
    if client.gone or client.outcome != "served":
        return
    yield from _stream_end(client, ending) if client.call.stream else _plain_end(client, ending)


def _stream_end(client: Client, ending: str) -> Iterable[str]:
    seen, call = client.seen, client.call
    clean = ending in (Ending.FINISHED, Ending.BUDGET)
    if seen.done != clean or (seen.error is None) != clean or client.rest:
        yield f"{client.name} {ending}: [DONE] {seen.done}, error {seen.error}, rest {client.rest!r}"
        return
    if clean and seen.finish.keys() != set(range(call.choices)):
        yield f"{client.name} {ending}: only {sorted(seen.finish)} are finished"
        return
    if ending == Ending.FINISHED:
        told = {
            i: Said(seen.ids.get(i, []), seen.text[i], seen.finish[i], seen.stop_reason[i]) for i in range(call.choices)
        }
        if not client.complete(told):
            yield f"{client.name} finished with {told}, should be {client.expected}"
        if call.wants_ids and not client.recovered and client.settled != client.ids + client.prompt_most:
            yield f"{client.name} finished, {client.ids} ids and all prompts delivered, charged {client.settled}"
    if clean and call.include_usage and call.wants_ids:
        counted = (seen.usage or {}).get("completion_tokens"), (seen.usage or {}).get("prompt_tokens")
        if counted[0] != client.ids or counted[1] not in (client.prompt_least, client.prompt_most):
            yield f"{client.name} is told {seen.usage}, and got {client.ids} ids"


def _plain_end(client: Client, ending: str) -> Iterable[str]:
    if client.body is None or client.started:
        yield f"{client.name} was served nothing, or a stream"
        return
    ids = sum(len(one[0].ids) for one in client.expected)
    told = {one["index"]: one for one in json.loads(client.body)["choices"]}
    if ending == Ending.FINISHED:
        if not client.recovered and client.settled != ids + client.prompt_most:
            yield f"{client.name} got {ids} tokens and {client.prompt_most} of prompts, charged {client.settled}"
        for index, one in told.items():
            text = one["message"]["content"] if client.plan.chat else one["text"]
            if text != client.expected[index][0].text or one["finish_reason"] != client.expected[index][0].finish:
                yield f"{client.name} got {one}, should be {client.expected[index][0]}"


def at_verdict(world: "World", name: str, hung: bool) -> Iterable[str]:
    """Nobody is ejected who is the last one up, or was well all the time."""
    if not hung:
        return
    if not any(one.health.up for one in world.gateway.replicas() if one.name != name):
        yield f"{name} was ejected, the last one that was up"
    server = next(one for one in world.servers if one.name == name)
    if server.well and world.loop.time() - server.harmed_s > UNHEALTHY_S:
        yield f"{name} was ejected, and was well"


def at_ease(world: "World") -> Iterable[str]:
    """All has been well for a while: everybody is up again."""
    for one in world.gateway.replicas():
        if not one.health.up:
            yield f"{one.name} was not taken back: {one.health}"


def at_rest(world: "World") -> Iterable[str]:
    """Nothing is left of anything."""
    gateway, network = world.gateway, world.network
    for one in gateway.replicas():
        if (one.load, one.pulse.streams, one.pulse.silent) != (0, 0, 0):
            yield f"{one.name} keeps load {one.load}, streams {one.pulse.streams}, silent {one.pulse.silent}"
        for model, breaker in one.breakers.items():
            if breaker.state is State.PROBING and breaker.refuses:
                yield f"{one.name}: the breaker of {model} waits for a probe that nobody runs"
        if one.tokens:
            yield f"{one.name} keeps {one.tokens} tokens in flight"
    waiting = gateway.turns.waiting
    if len(waiting):
        yield f"{len(waiting)} requests wait for a turn that never comes"
    for name, server in waiting._admission._permits._servers.items():
        if server.requests or server.room.tokens:
            yield f"{name} keeps permits of {server.requests} requests, {server.room.tokens} tokens"
    if gateway.turns.running:
        yield f"{len(gateway.turns.running)} turns are never over"
    if gateway.turns.forecasts is not None:
        for name, seen in gateway.turns.forecasts._seen.items():
            if seen.prompts.ahead:
                yield f"{seen.prompts.ahead} tokens of prompts are ahead of others at {name} for ever"
    if gateway.legs():
        yield f"{gateway.legs()} legs are left"
    if len(network.links) != gateway.pooled():
        yield f"{len(network.links)} connections are open, {gateway.pooled()} are in the pool"
    if any(world.metrics.busy.values()):
        yield f"the metrics say {world.metrics.busy}"
    for request_id, held in world.writer.holds():
        yield f"{request_id} still holds {held}"
    yield from world.writer.audit()
    charged: Counter[Place] = Counter()
    for client in world.clients.values():
        charged.update(client.charged or {})
    for at, account in world.writer.accounts():
        if account.spent != charged[at]:
            yield f"{at} spent {account.spent}, its requests {charged[at]}"
    told: Counter[Place] = Counter()
    for _, fact in world.facts:
        told.update({at: amount for at, amount in fact.get("charges", ())})
    if +told != +charged:
        yield f"the journal says {+told}, the ledger {+charged}"


def at_calm(world: "World") -> Iterable[str]:
    """Where nothing goes wrong everybody is served, as far as the money goes."""
    plan = world.plan
    if plan.faults or plan.outages or plan.crashes_s or plan.stop_s is not None or plan.total_s < 10:
        return
    fine = {Ending.FINISHED}
    if plan.shared or any(budget is not None for budget in plan.budgets):
        fine |= {Ending.BUDGET, Ending.REFUSED}
    for client in world.clients.values():
        ends = {fact["ending"] for fact in world.settled(client)}
        if not client.gone and not ends <= fine and sum(client.plan.full.values()) < plan.total_s / 2:
            yield f"{client.name}: {client.outcome} in a calm world, endings {ends}"
