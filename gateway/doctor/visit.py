"""Asks one server all that is asked of each."""

import asyncio
from dataclasses import replace
from statistics import median

import msgspec

from gateway.config import Replica, is_loopback
from gateway.doctor.facts import Server, Told, Without
from gateway.doctor.knock import Knock, knock
from gateway.doctor.listening import listening
from gateway.fleet import page_status
from gateway.fleet.answers import cards, verdict
from gateway.fleet.canary import Answer, Ask
from gateway.fleet.page_status import UNREADABLE, PageStatus
from gateway.stream.leg import Target
from guards.health import Probe

ANSWER_S = 5.0  # for one question
KNOCKS = 3
OUR_METRICS = b"\nholdfast_pages_"  # the plugin's, where the connector was loaded and has served
MODELS, VERSION, METRICS, SLEEPING = "/v1/models", "/version", "/metrics", "/is_sleeping"
DATE_S = 1.5  # a date is of whole seconds, and servers keep one for a second
WORD_CHARS_MAX = 200


class _Version(msgspec.Struct):
    version: str


class _Code(msgspec.Struct):
    code: str = ""


class _Refusal(msgspec.Struct):
    error: _Code


class _Settings(msgspec.Struct):
    store: str = ""


class _Said(msgspec.Struct):
    """What is read of a status beside `page_status`."""

    settings: _Settings = msgspec.field(default_factory=_Settings)


async def visit(site: Replica, model: str | None, target: Target, ask: Ask) -> tuple[Server, PageStatus | None]:
    """See what there is to see of a server, in a bounded number of questions, each within ANSWER_S."""
    probe = verdict(await ask(site.name, "/health", None, ANSWER_S))
    local = is_loopback(site.host)
    seen = Server(site.name, model, local, site.key is not None, probe)
    if probe is not Probe.GOOD:
        return seen, None
    knocks = await _knocks(target)
    listed, without_key, sleeping, version, (told, without) = await asyncio.gather(
        ask(site.name, MODELS, None, ANSWER_S),
        knock(target, MODELS, ANSWER_S, keyed=False),
        knock(target, SLEEPING, ANSWER_S, keyed=False),
        _version(site.name, ask),
        _told(site.name, ask),
    )
    ahead_s, unsure_s = _clock(knocks)
    server = replace(
        seen,
        connect_s=_median([one.connect_s for one in knocks]),
        health_s=_median([one.answer_s for one in knocks]),
        ahead_s=ahead_s,
        unsure_s=unsure_s,
        version=version,
        serves=cards(listed.body) if listed.status == 200 else None,
        allowed={200: True, 401: False, 403: False}.get(listed.status),
        open={200: True, 401: False, 403: False}.get(without_key.status),
        developer=sleeping.status == 200,
        listens=listening(site.port) if local else None,
        told=told,
        without=without,
    )
    return server, told.status if told else None


async def _knocks(target: Target) -> list[Knock]:
    """Some, one after the other, until one is not answered."""
    found = [await knock(target, "/health", ANSWER_S, keyed=True)]
    while len(found) < KNOCKS and found[-1].status:
        found.append(await knock(target, "/health", ANSWER_S, keyed=True))
    return found


def _clock(knocks: list[Knock]) -> tuple[float | None, float]:
    """Its clock before ours, and by how much that may be wrong, by the quickest answer."""
    dated = [one for one in knocks if one.date_s is not None and one.answer_s is not None]
    if not dated:
        return None, 0.0
    best = min(dated, key=lambda one: one.answer_s or 0.0)
    assert best.date_s is not None
    assert best.answer_s is not None
    return best.date_s + DATE_S / 2 - best.at_s, DATE_S / 2 + best.answer_s / 2


async def _version(name: str, ask: Ask) -> str | None:
    answer = await ask(name, VERSION, None, ANSWER_S)
    try:
        return _word(msgspec.json.decode(answer.body, type=_Version).version) if answer.status == 200 else None
    except UNREADABLE:
        return None


async def _told(name: str, ask: Ask) -> tuple[Told | None, Without]:
    """What its plugin says, else why it says nothing."""
    answer = await ask(name, page_status.PATH, None, ANSWER_S)
    if answer.status == 200:
        status = page_status.read(answer.body, 0.0)
        return (_read(answer.body, status), Without.PLUGIN) if status else (None, Without.SENSE)
    if answer.status == 503 or answer.silent:
        return None, Without.ANSWER
    if _code(answer) == "connector_absent":
        return None, Without.CONNECTOR
    page = await ask(name, METRICS, None, ANSWER_S)
    return None, Without.ROUTES if OUR_METRICS in page.body else Without.PLUGIN


def _code(answer: Answer) -> str:
    try:
        return msgspec.json.decode(answer.body, type=_Refusal).error.code
    except UNREADABLE:
        return ""


def _read(body: bytes, status: PageStatus) -> Told:
    try:
        said = msgspec.json.decode(body, type=_Said)
    except UNREADABLE:
        return Told(status)
    return Told(status, _word(said.settings.store))


def _word(text: str) -> str:
    """What a server says, as a terminal may be shown it."""
    return "".join(c if c.isprintable() else "?" for c in text[:WORD_CHARS_MAX])


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
