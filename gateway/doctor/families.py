"""What is to be said of the servers of one model beside each other. Pure."""

from collections.abc import Iterator, Sequence

from gateway.doctor.facts import Finding, Level, Server
from guards.health import Probe

OK, WARN, BAD = Level
HEX = 8  # digits of a fingerprint that tell one model from another


def compared(servers: Sequence[Server], models: Sequence[str], tokenizers: frozenset[str]) -> Iterator[Finding]:
    """Of each model. models: that are configured; tokenizers: those of them with one of the gateway's own."""
    served = [model for one in servers for model in one.models]
    for model in dict.fromkeys([*models, *served]):
        family = [one for one in servers if model in one.models]
        up = [one for one in family if one.probe is Probe.GOOD and model in (one.serves or ())]
        yield from _number(model, len(up), len(family))
        if len(up) > 1:
            yield from _alike(model, up)
            yield from _plugins(model, [one for one in up if one.allowed])
        if model in models and model not in tokenizers:
            instead = "Give the model its tokenizer in the configuration: text is then made here, and not asked for."
            yield Finding(WARN, model, "text after a failover is asked of its servers", instead)


def _number(model: str, up: int, all_: int) -> Iterator[Finding]:
    if not up:
        yield Finding(BAD, model, f"none of its {all_} servers can serve it", "Begin with those named above.")
    elif up == 1:
        instead = "Add a second one: a stream has nowhere to go on."
        yield Finding(WARN, model, f"one server of {all_} can serve it", instead)


def _alike(model: str, up: Sequence[Server]) -> Iterator[Finding]:
    """What vLLM says of itself, and what was found by asking all of them the same."""
    found = list(_differences(model, up))
    yield from found
    for one in up:
        if what := one.apart.get(model):
            said = (
                f"{one.name} has another {' and '.join(what)} than most: no stream goes on there, or comes from there"
            )
            yield Finding(BAD, model, said, "Start all with the same model, revision, --chat-template and defaults.")
            found.append(Finding(BAD, model, said))
    known = [frozenset(one.compared.get(model, ())) for one in up]
    in_all = [word for word in ("tokenizer", "chat template", "sampling defaults") if all(word in one for one in known)]
    if not found and in_all:
        yield Finding(OK, model, f"{len(up)} servers are alike: {', '.join(in_all)}")
    elif not in_all:
        instead = "Let the gateway reach /tokenize there."
        yield Finding(WARN, model, "its servers could not be compared", instead)


def _differences(model: str, up: Sequence[Server]) -> Iterator[Finding]:
    versions = {one.name: one.version for one in up if one.version}
    if len(set(versions.values())) > 1:
        said = f"versions of vLLM differ: {_named(versions)}"
        yield Finding(WARN, model, said, "Bring all to one version: another one may draw other tokens.")
    windows = {one.name: (one.serves or {}).get(model) for one in up}
    if len({window for window in windows.values() if window is not None}) > 1:
        said = f"windows differ: {_named(windows)}"
        yield Finding(WARN, model, said, "Start all with the same --max-model-len.")
    prints = {one.name: ",".join(one.told.status.fingerprints)[:HEX] for one in up if one.told}
    prints = {name: said for name, said in prints.items() if said}
    if len(set(prints.values())) > 1:
        said = f"weights, configuration or layout differ: {_named(prints)}"
        yield Finding(WARN, model, said, "Load the same revision everywhere: they share no KV pages.")


def _plugins(model: str, up: Sequence[Server]) -> Iterator[Finding]:
    told = [one for one in up if one.told is not None]
    if told and len(told) < len(up):
        lacking = ", ".join(one.name for one in up if one.told is None)
        said = f"{lacking} without Holdfast's plugin, others with it"
        yield Finding(WARN, model, said, "Install it everywhere: a stream that moves is as safe as its last server.")
    stores = {one.name: one.told.store or "none" for one in told if one.told}
    if len(set(stores.values())) > 1:
        said = f"page stores differ: {', '.join(sorted(stores))}"
        yield Finding(WARN, model, said, "Give all the same store: else a stream that moves is computed anew.")
    can = {one.name: one.told.continues for one in told if one.told and one.told.continues is not None}
    if len(set(can.values())) > 1:
        said = f"only some take over streams by replaying them: {', '.join(name for name, does in can.items() if does)}"
        yield Finding(WARN, model, said, "Start all with the same plugin and options.")


def _named(values: dict[str, str | None] | dict[str, int | None] | dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
