"""What was seen of servers, of the ledger's Redis and of this machine. None: it could not be seen."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from gateway.fleet.page_status import PageStatus
from guards.health import Probe


class Level(StrEnum):
    """How much a finding matters: nothing, something, or so much that requests or promises suffer."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


class Finding(NamedTuple):
    """One line. about: a server, a model, a file; instead: what to do about it, "" where nothing is to be done."""

    level: Level
    about: str
    said: str
    instead: str = ""


class Without(StrEnum):
    """Why a server says nothing of its KV pages."""

    PLUGIN = "plugin"  # it has none
    ROUTES = "routes"  # the plugin is there, its routes are not
    CONNECTOR = "connector"  # the routes are there, the plugin guards nothing
    SENSE = "sense"  # what it says cannot be read
    ANSWER = "answer"  # its engine did not answer in time


@dataclass(frozen=True, slots=True)
class Told:
    """What a server's plugin says. store: the address of the page store that it was given, "" without one."""

    status: PageStatus
    store: str = ""

    @property
    def continues(self) -> bool | None:
        """Whether it takes over streams by replaying them; None of an older one, which does not say."""
        if self.status.continues is not None:
            return True
        return False if self.status.continues_not else None


@dataclass(frozen=True, slots=True)
class Server:
    """One vLLM server. Times in seconds.

    model: that it is configured for; None where it is asked. local: whether its address is of this machine only.
    keyed: whether a key is configured. health_s: for an answer to /health. ahead_s: its clock before ours.
    unsure_s: by how much that may be wrong. allowed, open: whether /v1/models answers with that key, and without.
    developer: whether vLLM's routes for developers are open. listens: where its port listens on this machine.
    apart: in what it differs from most others, by model; compared: by what it could be.
    """

    name: str
    model: str | None
    local: bool
    keyed: bool
    probe: Probe
    connect_s: float | None = None
    health_s: float | None = None
    ahead_s: float | None = None
    unsure_s: float = 0.0
    version: str | None = None
    serves: dict[str, int | None] | None = None
    allowed: bool | None = None
    open: bool | None = None
    developer: bool | None = None
    listens: tuple[str, ...] | None = None
    told: Told | None = None
    without: Without = Without.PLUGIN
    apart: dict[str, tuple[str, ...]] = field(default_factory=dict)
    compared: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """Those that requests may go to it for."""
        return [self.model] if self.model is not None else list(self.serves or ())


@dataclass(frozen=True, slots=True)
class Redis:
    """One server of the shared ledger. why: it was not reached, "" where it was. begun: whether it may be used."""

    address: str
    why: str = ""
    answer_s: float = 0.0
    ahead_s: float = 0.0
    version: str = ""
    policy: str = ""
    memory_max: int = 0
    append_only: bool = True
    fsync: str | None = None
    replicas: int = 0
    begun: bool | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """A place where pages lie outside of engines. where: as it is shown; why: not reached from here."""

    where: str
    why: str = ""


class Gateway(StrEnum):
    """What listens at the gateway's own port."""

    NOBODY = "nobody"
    READY = "ready"
    NOT_READY = "not ready"
    OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine and the configuration's own part. Sizes in bytes.

    writable: why the data directory is not, "" where it is. shared: whether others on this machine may look into it.
    sync_s: for one small write to be on disk, in seconds. kind: of its file system.
    files_max: that this process, and a gateway started like it, may have open; files_wanted: for all clients.
    admin_taken: admin ports, of all workers, that somebody has while no gateway runs here.
    keys: whether there is any API key. port: what is at the public one, why: it is not ready.
    """

    data: str
    made: bool
    writable: str = ""
    shared: bool = False
    free: int | None = None
    kind: str = ""
    sync_s: float | None = None
    files_max: int = 0
    files_wanted: int = 0
    host: str = "127.0.0.1"
    admin_host: str = "127.0.0.1"
    admin_listens: tuple[str, ...] = ()
    admin_taken: tuple[int, ...] = ()
    keys: bool = True
    port: Gateway = Gateway.NOBODY
    why: str = ""
