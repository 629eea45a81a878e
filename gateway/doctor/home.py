"""What is to be said of the machine that the gateway runs on, of its ledger and of its page stores. Pure."""

from collections.abc import Iterator

from gateway.config import is_loopback
from gateway.doctor.facts import Finding, Gateway, Level, Machine, Redis, Store
from gateway.doctor.servers import CLOCK_S, CLOCK_S_MAX

OK, WARN, BAD = Level
FREE_MIN, FREE_FEW = 100 << 20, 1 << 30  # bytes on the data directory's disk
SYNC_S_MAX = 0.1  # a hold waits for one
REDIS_MAJOR = 7
ANSWER_S_FEW = 0.1  # of half a second that the gateway waits
IN_MEMORY = ("tmpfs", "ramfs")
ON_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "glusterfs", "fuse.glusterfs")


def of_machine(machine: Machine) -> Iterator[Finding]:
    """All that can be said of it."""
    yield from _data(machine)
    yield from _files(machine)
    yield from _ports(machine)


def _data(machine: Machine) -> Iterator[Finding]:
    if machine.writable:
        instead = "Let the user that the gateway runs as own it, or name another one: data:, --data."
        yield Finding(BAD, machine.data, f"cannot be written: {machine.writable}", instead)
        return
    free = machine.free
    room = "" if free is None else f", {free / 2**30:.1f} GiB free"
    if free is not None and free < FREE_FEW:
        instead = "Make room: budgets are refused when the ledger cannot be written."
        yield Finding(BAD if free < FREE_MIN else WARN, machine.data, f"its disk has {free >> 20} MiB left", instead)
    if machine.kind in IN_MEMORY:
        said = f"lies in memory ({machine.kind}): what was spent is forgotten with it"
        yield Finding(WARN, machine.data, said, "Name a directory on a disk.")
    elif machine.kind in ON_NETWORK:
        said = f"lies on a network ({machine.kind}), where SQLite's locks may not hold"
        yield Finding(WARN, machine.data, said, "Name a directory on a disk of this machine.")
    if machine.sync_s is not None and machine.sync_s > SYNC_S_MAX:
        said = f"its disk takes {machine.sync_s * 1000:.0f} ms to keep a small write"
        yield Finding(WARN, machine.data, said, "Use a faster disk: every new request waits for one.")
    if machine.shared:
        yield Finding(WARN, machine.data, "others on this machine may look into it", f"chmod 700 {machine.data}")
    yield Finding(OK, machine.data, f"{'can be written' if machine.made else 'can be made'}{room}")


def _files(machine: Machine) -> Iterator[Finding]:
    about = "open files"
    if machine.files_max < machine.files_wanted:
        said = f"at most {machine.files_max}, for all clients {machine.files_wanted} are needed: fewer are let in"
        instead = f"ulimit -n {machine.files_wanted}; LimitNOFILE= in a unit; or lower limits.client_connections."
        yield Finding(WARN, about, said, instead)
    else:
        yield Finding(OK, about, f"{machine.files_max} allowed, {machine.files_wanted} needed at most")


def _ports(machine: Machine) -> Iterator[Finding]:
    if not machine.keys and not is_loopback(machine.host):
        said = f"it is to listen on {machine.host}, and there is no API key: it will not start"
        yield Finding(BAD, "public port", said, "Make one: holdfast keys create --user NAME.")
    if machine.port is Gateway.OTHERS:
        said = "something else than a gateway has it"
        yield Finding(BAD, "public port", said, "End that, or choose another: listen.port, --port.")
    elif machine.port is Gateway.NOT_READY:
        yield Finding(WARN, "public port", f"a gateway runs here and is not ready: {machine.why}", "See above.")
    elif machine.port is Gateway.READY:
        yield Finding(OK, "public port", "a gateway runs here, and is ready")
    if machine.admin_taken:
        said = f"something else than a gateway has {', '.join(map(str, machine.admin_taken))}: it will not start"
        yield Finding(BAD, "admin port", said, "End that, or choose another: listen.admin_port; each worker has one.")
    public = [place for place in (machine.admin_host, *machine.admin_listens) if not is_loopback(place)]
    if public:
        said = f"can be reached from other machines, on {', '.join(dict.fromkeys(public))}: only its key guards it"
        yield Finding(WARN, "admin port", said, "Listen on 127.0.0.1, or let a firewall keep others out.")
    elif not machine.admin_taken:
        yield Finding(OK, "admin port", "can be reached from this machine only")


def of_ledger(servers: list[Redis], replicas: int) -> Iterator[Finding]:
    """All that can be said of the Redis servers that gateways share. replicas: that must have a grant."""
    for one in servers:
        about = f"ledger {one.address}"
        if one.why:
            yield Finding(BAD, about, one.why, "Start it, or correct ledger.url; requests are refused without it.")
            continue
        found = [*_redis(about, one, replicas)]
        yield from found
        if not found:
            yield Finding(
                OK, about, f"Redis {one.version} answers in {one.answer_s * 1000:.0f} ms and keeps what it has"
            )


def _redis(about: str, one: Redis, replicas: int) -> Iterator[Finding]:
    if not one.version.split(".")[0].isdecimal() or int(one.version.split(".")[0]) < REDIS_MAJOR:
        yield Finding(BAD, about, f"Redis {one.version or '?'}", f"Run {REDIS_MAJOR}.0 or later, or Valkey.")
    if one.memory_max and one.policy != "noeviction":
        said = f"forgets budgets when it is full (maxmemory-policy {one.policy}): gateways refuse it"
        yield Finding(BAD, about, said, "CONFIG SET maxmemory-policy noeviction, and in its redis.conf.")
    elif one.policy != "noeviction":
        said = f"maxmemory-policy is {one.policy}: with a maxmemory it would forget budgets"
        yield Finding(WARN, about, said, "CONFIG SET maxmemory-policy noeviction, and in its redis.conf.")
    if not one.append_only:
        said = "forgets at a restart what was spent since its last snapshot (appendonly no)"
        yield Finding(
            WARN, about, said, "CONFIG SET appendonly yes, and appendfsync always; see docs/shared-budgets.md."
        )
    elif one.fsync not in (None, "always"):
        said = f"may forget the last second when its machine dies (appendfsync {one.fsync})"
        yield Finding(WARN, about, said, "CONFIG SET appendfsync always, where no cent may be given twice.")
    if one.replicas < replicas:
        said = f"has {one.replicas} replicas, ledger.replicas wants {replicas}: it grants nothing"
        yield Finding(BAD, about, said, "Add replicas, or lower ledger.replicas.")
    if one.begun is False:
        yield Finding(
            BAD, about, "is empty: no gateway may use it", "holdfast ledger begin, once: docs/shared-budgets.md."
        )
    if one.answer_s > ANSWER_S_FEW:
        yield Finding(
            WARN, about, f"answers in {one.answer_s * 1000:.0f} ms", "Bring it nearer, or look what slows it."
        )
    if abs(one.ahead_s) > CLOCK_S:
        said = f"its clock is {abs(one.ahead_s):.0f} s {'ahead of' if one.ahead_s > 0 else 'behind'} ours"
        yield Finding(BAD if abs(one.ahead_s) > CLOCK_S_MAX else WARN, about, said, "Run NTP on both machines.")


def of_stores(stores: list[Store]) -> Iterator[Finding]:
    """Of where engines keep pages, as far as it can be seen from here."""
    for one in stores:
        about = f"page store {one.where}"
        if one.why:
            instead = "Look from the machine of the servers: the gateway itself does not need it."
            yield Finding(WARN, about, f"{one.why}, seen from here", instead)
        else:
            yield Finding(OK, about, "is there")
