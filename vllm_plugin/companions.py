"""Companions: the other connectors beside Holdfast's in one of vLLM's MultiConnector.

All are told of everything, in the order of the configuration, and the first one that has pages for a request brings
them. Whichever that is, and whether it does so in a step or between steps, what it brought is looked at after the
forward pass that reads it first. So no order leaves pages unprotected; whoever comes first is asked first.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vllm_plugin.refusals import RefusedAtStart, refusals_beside, refusals_of_policy
from vllm_plugin.wrapping import wrap

OURS = "HoldfastConnector"
MULTI = "MultiConnector"


class Found(NamedTuple):
    """Holdfast's connector. number: among the members of a MultiConnector, None where it is alone."""

    connector: Any
    number: int | None

    def part(self, sent: Any) -> Any:
        """Its part of what the workers' connectors sent."""
        return sent if sent is None or self.number is None else sent.metadata[self.number]


def members(connector: Any) -> Sequence[Any]:
    """Of a MultiConnector, in order; none of any other."""
    return getattr(connector, "_connectors", ()) if type(connector).__name__ == MULTI else ()


def find(connector: Any) -> Found | None:
    """Holdfast's, where it is this one or a member of it."""
    if type(connector).__name__ == OURS:
        return Found(connector, None)
    for number, member in enumerate(members(connector)):
        if type(member).__name__ == OURS:
            return Found(member, number)
    return None


def policy(connector: Any) -> str:
    """What becomes of a request whose load failed, as this connector was told: that of the outermost counts."""
    return str(getattr(connector._vllm_config.kv_transfer_config, "kv_load_failure_policy", "fail"))


def check(whole: Any) -> None:
    """whole: what vLLM asks, Holdfast's connector or the MultiConnector that it is in. Raises RefusedAtStart."""
    names = [type(member).__name__ for member in members(whole)]
    nested = any(find(member) is not None for member in members(whole) if members(member))
    found = find(whole)
    if found is None and not nested:
        return
    lines = refusals_of_policy(policy(whole))
    if names:
        unprotected = found.connector.settings.unprotected if found is not None else frozenset()
        lines += refusals_beside(names, nested=nested, unprotected=unprotected)
    if lines:
        raise RefusedAtStart.saying(lines)


def guard(multi: type) -> None:
    """From now on, a MultiConnector that would not be protected does not start, and pages that were bad once are not
    asked for again. multi: vLLM's class.
    """
    wrap(multi, "bind_kv_cache_manager", _bind)
    wrap(multi, "get_num_new_matched_tokens", _matched)


def _bind(original: Callable[..., Any], self: Any, *args: Any, **kw: Any) -> Any:
    """It is whole now. Raises RefusedAtStart."""
    check(self)
    found = find(self)
    if found is not None:
        names = [type(member).__name__ for member in members(self)]
        found.connector.join(self, [name for name in names if name != OURS])
    return original(self, *args, **kw)


def _matched(original: Callable[..., Any], self: Any, request: Any, num_computed_tokens: int) -> Any:
    tokens, later = original(self, request, num_computed_tokens)
    found = find(self)
    chosen = self._requests_to_connector
    if not tokens or found is None or chosen.get(request.request_id) == found.number:
        return tokens, later
    if not found.connector.others_may_not(request, num_computed_tokens):
        return tokens, later
    chosen.pop(request.request_id, None)
    tokens, later = found.connector.get_num_new_matched_tokens(request, num_computed_tokens)
    if tokens:
        chosen[request.request_id] = found.number
    return tokens, later
