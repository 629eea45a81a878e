"""What the parts of a configuration must not be together.

Works on a raw tree as well as on a `Config`: parts that are wrong in themselves are passed over, so that
these faults are reported together with those, not after they were mended.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from gateway.config import Bounded, DeclaredBudget, DeclaredKey, Limits, Listen, Replica, is_loopback
from gateway.config_integrity import IntegrityConfig
from gateway.config_ledger import LedgerConfig
from gateway.config_part import Part
from gateway.config_service import AdmissionConfig
from gateway.yaml_tree import Fault, Loc
from guards.budget import Limit

P = TypeVar("P", bound=Part)
Sites = list[tuple[Loc, Replica]]


def cross_faults(raw: Any) -> list[Fault]:
    """Check a raw mapping, or a Config, for contradictions between its parts."""
    sites = _sites(raw)
    return [
        *_source_faults(raw),
        *_model_faults(raw),
        *_twice(sites, "url", lambda replica: replica.url, "Each server is one replica: remove one."),
        *_twice(sites, "name", lambda replica: replica.name, "Give one of them another name."),
        *_key_faults(sites),
        *_listen_faults(raw),
        *_worker_faults(raw),
        *_lease_faults(raw),
        *_budget_faults(raw),
        *_ledger_faults(raw),
        *_integrity_faults(raw),
        *_price_faults(raw),
        *_cheaper_faults(raw),
        *_tier_faults(raw),
        *_degrade_faults(raw),
    ]


def _source_faults(raw: Any) -> Iterator[Fault]:
    models, upstreams = _get(raw, "models"), _get(raw, "upstreams")
    if models and upstreams:
        hint = "Keep models, or keep upstreams to have the models asked for."
        yield Fault(("upstreams",), "both models and upstreams are given", hint)
    if not models and not upstreams:
        yield Fault((), "no models and no upstreams", "Add models: with their replicas, or upstreams: with URLs.")


def _model_faults(raw: Any) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for at, model in enumerate(_items(raw, "models")):
        name = _get(model, "name")
        if isinstance(name, str):
            if name in seen:
                hint = f"models[{seen[name]}] has it: put all replicas of a model under one entry."
                yield Fault(("models", at, "name"), "the same model twice", hint)
            seen.setdefault(name, at)
        replicas = [_tried(Replica, item) for item in _items(model, "replicas")]
        # A replica that is wrong in itself may have been meant as the active one.
        if replicas and all(replica and replica.role == "standby" for replica in replicas):
            yield Fault(("models", at, "replicas"), "no active replica", "Give one of them role: active.")


def _twice(sites: Sites, name: str, value: Callable[[Replica], str], hint: str) -> Iterator[Fault]:
    """Find replicas that share a value; the later one is at fault. A shared URL implies a shared default name."""
    seen: dict[str, str] = {}
    urls: set[str] = set()
    for loc, replica in sites:
        if value(replica) in seen and not (name == "name" and replica.url in urls):
            yield Fault((*loc, name), f"the same replica {name} twice", f"{seen[value(replica)]} has it. {hint}")
        seen.setdefault(value(replica), text(loc))
        urls.add(replica.url)


def _key_faults(sites: Sites) -> Iterator[Fault]:
    for loc, replica in sites:
        if not replica.key and not is_loopback(replica.host):
            hint = "Start vLLM with --api-key; "
            hint += 'write key: "${UPSTREAM_KEY}" (for --upstream: set HOLDFAST_UPSTREAM_KEY).'
            yield Fault(loc, "vLLM servers beyond loopback need an upstream key", hint)


def _listen_faults(raw: Any) -> Iterator[Fault]:
    listen = _tried(Listen, _get(raw, "listen") or {})
    if listen is None:
        return
    if listen.port == listen.admin_port != 0:
        yield Fault(("listen", "admin_port"), "the admin port is the public port", "Give it another, such as 8081.")
    if not is_loopback(listen.admin_host) and _get(raw, "admin_key_sha256") is None:
        hint = "Add admin_key_sha256, or listen on 127.0.0.1."
        yield Fault(("listen", "admin_host"), "an admin port beyond loopback needs a key", hint)


def _worker_faults(raw: Any) -> Iterator[Fault]:
    listen, workers = _tried(Listen, _get(raw, "listen") or {}), _get(raw, "workers")
    count = int(workers) if isinstance(workers, int) or str(workers).isdecimal() else 1
    if listen and listen.admin_port:
        last = listen.admin_port + count - 1  # each has its own
        if last > 65_535 or listen.admin_port < listen.port <= last:
            hint = f"Give it one that is free together with the {count - 1} after it, away from port."
            yield Fault(("listen", "admin_port"), "not enough ports for the admin ports of all workers", hint)
    for kind, model in (("keys", DeclaredKey), ("budgets", DeclaredBudget)):
        for at, item in enumerate(_items(raw, kind)):
            one = _tried(model, item)
            if one is not None and any(rate.burst < count for _, rate in one.rates):
                hint = f'Write "... burst {count}" or more: it is divided among the workers.'
                yield Fault((kind, at, "rates"), "a burst of fewer than there are workers", hint)


def _lease_faults(raw: Any) -> Iterator[Fault]:
    limits = _tried(Limits, _get(raw, "limits") or {})
    if limits and limits.lease_low_tokens > limits.lease_tokens:
        hint = f"Write at most {limits.lease_tokens}, or raise lease_tokens."
        yield Fault(("limits", "lease_low_tokens"), "above lease_tokens", hint)


def _ledger_faults(raw: Any) -> Iterator[Fault]:
    ledger = _get(raw, "ledger") or {}
    if not _get(ledger, "url"):
        for name in ("replicas", "when_down", "leased_scopes", "write_off_after", "one_off"):
            default = LedgerConfig.model_fields[name].default
            if (_get(ledger, name) or default) != default:
                hint = 'Add url: "redis://...", or remove it.'
                yield Fault(("ledger", name), "means nothing without a server", hint)
    elif _get(ledger, "when_down") == "leased" and _get(ledger, "leased_scopes"):
        hint = "Remove it, or write when_down: refuse for all others."
        yield Fault(("ledger", "leased_scopes"), "when_down: leased is for all", hint)


def _integrity_faults(raw: Any) -> Iterator[Fault]:
    integrity = _tried(IntegrityConfig, _get(raw, "integrity") or {})
    if integrity and integrity.same_fingerprint and not integrity.ask_every_s:
        hint = "Write ask_every_s: 5, or remove it."
        yield Fault(("integrity", "same_fingerprint"), "nobody asks for fingerprints while ask_every_s is 0", hint)


FIELDS = ("tokens", "limits", "each_session", "each_agent", "each_turn")
BESIDES = ("rates", "breaker", "timeouts", "over_context", "tier")


def _budget_faults(raw: Any) -> Iterator[Fault]:
    seen: dict[tuple[Any, ...], str] = {}
    for at, item in enumerate(_items(raw, "budgets")):
        budget = _tried(DeclaredBudget, item)
        if budget is None:
            continue
        if budget.team is not None and budget.user is not None:
            yield Fault(("budgets", at), "names both a team and a user", "Write one entry for each.")
        elif budget.org is None and budget.team is None and budget.user is None:
            yield Fault(("budgets", at), "names nobody", 'Add "org: ...", "team: ..." or "user: ...".')
        if not any(getattr(budget, field) for field in (*FIELDS[1:], *BESIDES)):
            hint = 'Add "limits: [50.00 USD/month]", or each_session, each_agent, each_turn, rates, breaker, timeouts, '
            hint += "over_context, tier."
            yield Fault(("budgets", at), "no limits", hint)
        yield from _limits_twice(("budgets", at), budget, budget.scope, seen)
    hashes: dict[str, int] = {}
    for at, item in enumerate(_items(raw, "keys")):
        key = _tried(DeclaredKey, item)
        if key is None:
            continue
        if key.sha256 in hashes:
            yield Fault(("keys", at, "sha256"), "the same key twice", f"keys[{hashes[key.sha256]}] has it. Keep one.")
        else:
            hashes[key.sha256] = at
            yield from _limits_twice(("keys", at), key, key.sha256, seen)


def _limits_twice(at: Loc, of: Bounded, whose: str, seen: dict[tuple[Any, ...], str]) -> Iterator[Fault]:
    """Find limits of one unit and window: the last would hold, and nobody would know. tokens: is one of limits:."""
    for field in FIELDS:
        said = getattr(of, field, None) or ()
        limits: tuple[Limit, ...] = said if isinstance(said, tuple) else (said,)
        for number, limit in enumerate(limits):
            loc = (*at, field, number) if limits is said else (*at, field)
            which = ("limits" if field == "tokens" else field, whose, limit.unit, limit.window)
            if which in seen:
                yield Fault(loc, "the same kind of limit twice", f"{seen[which]} is one. Keep one of them.")
            seen.setdefault(which, text(loc))


def _price_faults(raw: Any) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    for at, price in enumerate(_items(raw, "prices")):
        name = _get(price, "model")
        if isinstance(name, str) and name in seen:
            yield Fault(("prices", at, "model"), "the same model twice", f"prices[{seen[name]}] has it. Keep one.")
        elif isinstance(name, str):
            seen[name] = at


def _cheaper_faults(raw: Any) -> Iterator[Fault]:
    """Find models whose stand-in is none: unknown, in a circle, or without the price that a budget in money needs."""
    said = [(_get(model, "name"), _get(model, "cheaper")) for model in _items(raw, "models")]
    names = [name if isinstance(name, str) else None for name, _ in said]
    instead = {name: one if isinstance(one, str) else None for name, (_, one) in zip(names, said, strict=True)}
    priced = [_get(price, "model") for price in _items(raw, "prices")]
    for at, name in enumerate(names):
        cheaper, loc = instead[name], ("models", at, "cheaper")
        if cheaper is None:
            continue
        seen = [name]
        while seen[-1] is not None and seen.count(seen[-1]) == 1:
            seen.append(instead.get(seen[-1]))
        if cheaper not in names:
            yield Fault(loc, "no such model", "Name another one of models.")
        elif seen[-1] is not None:
            yield Fault(loc, "cheaper models in a circle", "Leave it out for the cheapest.")
        elif name in priced and cheaper not in priced:
            yield Fault(loc, "the cheaper model has no price", "Add it to prices.")


def _tier_faults(raw: Any) -> Iterator[Fault]:
    """Find tiers that are named and are not there, and two of one name."""
    names: dict[str, int] = {}
    for at, tier in enumerate(_items(raw, "tiers")):
        name = _get(tier, "name")
        if isinstance(name, str):
            if name in names:
                hint = f"tiers[{names[name]}] has it. Give each a name of its own."
                yield Fault(("tiers", at, "name"), "two tiers have one name", hint)
            names.setdefault(name, at)
    for part in ("keys", "budgets"):
        for at, item in enumerate(_items(raw, part)):
            named = _get(item, "tier")
            if isinstance(named, str) and named not in names:
                known = ", ".join(names) or "none yet"
                yield Fault((part, at, "tier"), "there is no such tier", f"Name one of tiers: {known}.")


def text(loc: Iterable[str | int]) -> str:
    """Write a place as people do: models[0].replicas[1].url."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc).removeprefix(".")


def _sites(raw: Any) -> Sites:
    """Every replica that is right in itself, with its place."""
    places: list[tuple[Loc, Any]] = [(("upstreams", at), item) for at, item in enumerate(_items(raw, "upstreams"))]
    for of, model in enumerate(_items(raw, "models")):
        places += [(("models", of, "replicas", at), item) for at, item in enumerate(_items(model, "replicas"))]
    return [(loc, replica) for loc, item in places if (replica := _tried(Replica, item))]


def _tried(kind: type[P], raw: Any) -> P | None:
    try:
        return kind.model_validate(raw)
    except ValidationError:
        return None


def _get(raw: Any, name: str) -> Any:
    return raw.get(name) if isinstance(raw, dict) else getattr(raw, name, None)


def _items(raw: Any, name: str) -> list[Any]:
    items = _get(raw, name)
    return list(items) if isinstance(items, list | tuple) else []


def _degrade_faults(raw: Any) -> Iterator[Fault]:
    """Find steps that could never be taken."""
    steps = _items(_get(raw, "degrade"), "steps")
    if "cheaper" in steps and not any(_get(model, "cheaper") for model in _items(raw, "models")):
        hint = "Add cheaper: to one of models, or remove this step."
        yield Fault(("degrade", "steps"), "no model has a cheaper one", hint)
    admission = _tried(AdmissionConfig, _get(raw, "admission") or {})
    if steps and admission and not admission.on:
        hint = "Remove them, or let requests wait in the gateway: admission: {on: true}."
        yield Fault(("degrade", "steps"), "nobody foresees a refusal while admission is off", hint)
