"""What is to be said of each server. Pure."""

from collections.abc import Iterator

from gateway.config import is_loopback
from gateway.config_times import Timeouts
from gateway.doctor.facts import Finding, Level, Server, Without
from gateway.fleet.page_status import Store
from guards.health import Probe

OK, WARN, BAD = Level
CLOCK_S, CLOCK_S_MAX = 2.0, 60.0  # that a clock may differ from ours
LAG_S_MAX = 30.0  # that a page may wait to be stored
START = {
    Probe.REFUSED: "Start it, or correct its url; a firewall may be between.",
    Probe.DEAD: "Restart it; its log says why.",
    Probe.SILENT: "Look whether its machine is overloaded, or whether it hangs; then restart it.",
    Probe.ODD: "Name a vLLM server's root, such as http://10.0.0.5:8000, and nothing in between.",
    Probe.KEY: "Let /health through without another key: a proxy may be between.",
}
KEYLESS = 'Start it with --api-key, and write that as its key: "${UPSTREAM_KEY}"'
NO_KEY = 'Write the one that it was started with as its key: "${UPSTREAM_KEY}" (for --upstream: HOLDFAST_UPSTREAM_KEY).'


def judged(server: Server, times: Timeouts, ours: str) -> Iterator[Finding]:
    """All that can be said of one. ours: the version of this Holdfast."""
    if server.probe is not Probe.GOOD:
        return iter((Finding(BAD, server.name, server.probe.value, START.get(server.probe, "")),))
    parts = (_latency(server, times), _models(server), _key(server), _developer(server), _clock(server))
    return (one for part in (*parts, _plugin(server, ours)) for one in part)


def _latency(server: Server, times: Timeouts) -> Iterator[Finding]:
    version = f"vLLM {server.version}" if server.version else "a version that it does not tell"
    said = f"answers in {_ms(server.health_s)}; {version}"
    for name, took_s, most_s in (("connect_s", server.connect_s, times.connect_s),
                                 ("probe_s", server.health_s, times.probe_s)):  # fmt: skip
        what = "takes a connection" if name == "connect_s" else "answers /health"
        if took_s is not None and took_s > most_s:
            instead = f"Bring it nearer, or raise timeouts.{name}: the gateway takes it for down after {most_s:g} s."
            yield Finding(BAD, server.name, f"{what} after {took_s:.2f} s", instead)
            return
        if took_s is not None and took_s > most_s / 2:
            instead = f"Raise timeouts.{name} above {most_s:g} s, or find out what slows it."
            yield Finding(WARN, server.name, f"{what} after {took_s:.2f} s", instead)
            return
    yield Finding(OK, server.name, said)


def _models(server: Server) -> Iterator[Finding]:
    if server.allowed is False:
        if server.keyed:
            yield Finding(BAD, server.name, "refuses its key", "Write the one that it was started with (--api-key).")
        else:
            yield Finding(BAD, server.name, "asks for a key, and none is configured", NO_KEY)
        return
    if server.serves is None:
        instead = "Look at what answers there: it is not as vLLM's /v1/models."
        yield Finding(BAD, server.name, "does not tell what it serves", instead)
        return
    served = ", ".join(f"{name} ({'?' if window is None else window} tokens)" for name, window in server.serves.items())
    if server.model is not None and server.model not in server.serves:
        instead = f"Start it with --served-model-name {server.model}, or name the model as it does."
        yield Finding(BAD, server.name, f"does not serve {server.model}, but {served or 'nothing'}", instead)
    elif not server.serves:
        yield Finding(BAD, server.name, "serves no model", "Look at its log.")
    else:
        yield Finding(OK, server.name, f"serves {served}")


def _key(server: Server) -> Iterator[Finding]:
    """Whether it can be asked around the gateway."""
    if server.open is None or (server.allowed is False and not server.keyed):
        return
    public = [place for place in server.listens or () if not is_loopback(place)]
    reach = f", and listens on {', '.join(public)}" if public else ""
    if not server.open:
        yield Finding(OK, server.name, f"refuses whoever has no key{reach}")
    elif public or not server.local:
        said = f"answers without a key{reach}: whoever reaches that port is bound by no budget"
        instead = KEYLESS + ("; or with --host 127.0.0.1." if public else ".")
        yield Finding(BAD, server.name, said, instead)
    elif server.keyed:
        instead = "Start it with --api-key: vLLM started without one asks for none."
        yield Finding(WARN, server.name, "answers without its key, though one is configured", instead)
    elif server.listens is None:
        yield Finding(OK, server.name, "asks for no key; its address is of this machine only")
    else:
        yield Finding(OK, server.name, "asks for no key, and listens on loopback only")


def _developer(server: Server) -> Iterator[Finding]:
    if server.developer:
        said = "has vLLM's routes for developers, open without a key: /sleep, /collective_rpc and others"
        yield Finding(WARN if server.local else BAD, server.name, said, "Start it without VLLM_SERVER_DEV_MODE.")


def _clock(server: Server) -> Iterator[Finding]:
    ahead_s = server.ahead_s
    if ahead_s is None or abs(ahead_s) <= CLOCK_S + server.unsure_s:
        return
    said = f"its clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} ours"
    yield Finding(BAD if abs(ahead_s) > CLOCK_S_MAX else WARN, server.name, said, "Run NTP on both machines.")


def _plugin(server: Server, ours: str) -> Iterator[Finding]:
    if server.allowed is False:
        return
    if server.told is None:
        said, instead = WITHOUT[server.without]
        yield Finding(WARN, server.name, said, instead)
        return
    told, status = server.told, server.told.status
    version = ", ".join(status.versions) or "?"
    if status.bad:
        said = f"found {status.bad} KV pages that went bad in its memory since it was started"
        yield Finding(BAD, server.name, said, "Look at holdfast replicas; test its memory and its GPU.")
    if not status.protected:
        said = f"verifies KV pages that are hit, but does not protect running requests: {', '.join(status.unprotected)}"
        instead = "Start it with --no-async-scheduling, and without «unprotected» in kv_connector_extra_config."
        yield Finding(WARN, server.name, said, instead)
    else:
        yield Finding(OK, server.name, f"Holdfast's plugin {version} guards its KV pages")
    if ours and status.versions and status.versions != (ours,):
        instead = f"Install {ours} there as well, and restart it."
        yield Finding(WARN, server.name, f"its plugin is {version}, this gateway {ours}", instead)
    yield from _store(server.name, status.store)
    if told.continues is False:
        said = f"takes over no stream by replaying it: {status.continues_not}"
        yield Finding(WARN, server.name, said, "See docs/failover.md for what such a server can go on with.")


def _store(name: str, store: Store | None) -> Iterator[Finding]:
    if store is None:
        return
    lacking = [f"{store.counts[what]} {what}" for what in ("shed", "lost") if store.counts.get(what)]
    if lacking:
        said = f"pages did not reach its store, or were not there any more: {', '.join(lacking)}"
        yield Finding(WARN, name, said, "Give the store more room (size, queue), or look at its servers.")
    if store.lag_s > LAG_S_MAX:
        said = f"pages wait {store.lag_s:.0f} s to be stored"
        yield Finding(WARN, name, said, "Look whether the store is slow, or cannot be reached from there.")


WITHOUT = {
    Without.PLUGIN: ("has no Holdfast plugin: its KV pages are not verified, nor found elsewhere after a failover",
                     "See docs/pages.md."),
    Without.ROUTES: ("has Holdfast's plugin, but not its routes: the gateway cannot see how its KV pages are",
                     "Start it with VLLM_PLUGINS=holdfast, and name in it all other plugins that you want."),
    Without.CONNECTOR: ("has the routes of Holdfast's plugin, but guards no KV pages",
                        "Start it with --kv-transfer-config and HoldfastConnector in it: docs/pages.md."),
    Without.SENSE: ("says something else than Holdfast's plugin at /holdfast/status",
                    "Install the version of this gateway there."),
    Without.ANSWER: ("did not answer in time how its KV pages are", "Its engine is busy, or hangs: ask again."),
}  # fmt: skip


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1000:.1f} ms"
