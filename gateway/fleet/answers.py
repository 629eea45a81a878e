"""What a replica's answers to a probe come to."""

import msgspec

from gateway.fleet.canary import Answer
from guards.health import Probe


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


def verdict(answer: Answer) -> Probe:
    """Read a verdict off an answer. Only what vLLM says of a dead engine is DEAD: that ends its streams."""
    if not answer.reached:
        return Probe.REFUSED
    if answer.silent:
        return Probe.SILENT
    verdicts = {200: Probe.GOOD, 401: Probe.KEY, 403: Probe.KEY, 500: Probe.DEAD, 503: Probe.DEAD}
    return verdicts.get(answer.status, Probe.ODD)


def cards(body: bytes) -> dict[str, int | None] | None:
    """Each model that /v1/models names, with its window in tokens; None where it is no such answer."""
    try:
        found = msgspec.json.decode(body, type=_Cards).data
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return {card.id: card.max_model_len for card in found}
