"""The shape of `holdfast.yaml`: frozen models, read once, handed to constructors field by field.

Here is what one value may be. What values must not be together is in `config_checks`, and how a file
becomes a `Config`, with the line of every error, in `config_file`.
"""

import difflib
import os.path
import re
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from gateway.config_alarms import Alerts, Breaker
from gateway.config_health import HealthConfig
from gateway.config_integrity import IntegrityConfig
from gateway.config_ledger import LedgerConfig
from gateway.config_part import Part, wrong
from gateway.config_routing import Routing
from gateway.config_service import AdmissionConfig, DegradeConfig, RetriesConfig, TierConfig, TierName
from gateway.config_times import ModelTimes, Timeouts, TurnTimes
from gateway.config_warming import WarmingConfig
from guards.budget import UNLIMITED, Limit, Unit, Window
from guards.money import Price, dollars
from guards.rate import Counted, Rate
from guards.scope import AGENT, SESSION, TURN, scope

_LIMIT = re.compile(r"(\$?)([0-9][0-9_]*(?:\.[0-9]+)?)([kKmM]?)(?:\s*([a-zA-Z ]+))?(?:\s*/\s*(\w+))?")
_LIMIT_HINT = (
    'Write tokens or dollars per window, such as "100000/day", "10k output tokens/hour" or "5.00 USD/month"; '
    "windows: minute, hour, day, month, total."
)
_RATE = re.compile(
    r"([0-9][0-9_]*)([km]?)\s*(requests|tokens)\s*/\s*(second|minute|hour|day)(\s+per\s+stream)?"
    r"(?:\s+burst\s+([0-9][0-9_]*)([km]?))?"
)
_RATE_HINT = (
    'Write a rate such as "60 requests/minute", "100k tokens/minute", "10 requests/second burst 20" or '
    '"50 tokens/second per stream".'
)
_PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
RATE_MAX = 10**9  # so that an interval is a nanosecond at least
_UNITS = {
    "": Unit.TOKENS, "tokens": Unit.TOKENS, "input tokens": Unit.INPUT, "output tokens": Unit.OUTPUT,
    "input": Unit.INPUT, "output": Unit.OUTPUT, "usd": Unit.MONEY, "$": Unit.MONEY,
}  # fmt: skip
_URL_HINT = 'Write the server\'s root, such as "http://10.0.0.5:8000".'
_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_limit(text: str) -> Limit:
    """Read a limit: "100000", "100_000/day", "2M output tokens/hour", "5.00 USD/month". No window means total.

    Raises PydanticCustomError (a ValueError) whose context holds `message` and `hint`.
    """
    match = _LIMIT.fullmatch(text.strip()[:64])
    if match is None:
        raise wrong("not a budget", _LIMIT_HINT)
    sign, number, factor, unit, window = (found or "" for found in match.groups())
    kind = _UNITS.get(sign + unit.lower().strip())
    if kind is None:
        raise wrong("unknown unit of a budget", _LIMIT_HINT)
    amount = _money(number, factor) if kind is Unit.MONEY else _tokens(number, factor)
    if not 0 < amount < UNLIMITED:
        raise wrong("a budget is at least 1 and below 2^62", "Leave it out for no budget.")
    window = (window or "total").lower()
    if window not in list(Window):
        close = difflib.get_close_matches(window, list(Window), n=1)
        raise wrong("unknown budget window", f'Did you mean "{close[0]}"?' if close else _LIMIT_HINT)
    return Limit(amount, Window(window), kind)


def window_of(text: str) -> tuple[Unit, Window]:
    """Read the kind of a limit, such as "USD/month" or "tokens"; no window means total. Raises ValueError."""
    unit, _, window = (part.strip().lower() for part in text.partition("/"))
    if unit not in _UNITS or (window or "total") not in list(Window):
        raise ValueError('write a unit and a window, such as "USD/month" or "output tokens/hour"')
    return _UNITS[unit], Window(window or "total")


def _tokens(number: str, factor: str) -> int:
    if "." in number:
        raise wrong("tokens are whole", _LIMIT_HINT)
    return int(number) * {"": 1, "k": 1000, "m": 1_000_000}[factor.lower()]


def _money(number: str, factor: str) -> int:
    if factor:
        raise wrong("money is written out", _LIMIT_HINT)
    return _dollars(number)


def _dollars(text: str) -> int:
    try:
        return dollars(text)
    except ValueError:
        raise wrong("not an amount of dollars", "Write dollars with at most six decimals, such as 12.50.") from None


def parse_rate(text: str) -> tuple[Counted, Rate]:
    """Read a rate: "60 requests/minute", "100k tokens/minute", "50 tokens/second per stream burst 20".

    Unsaid, the burst is a period's worth. Raises PydanticCustomError (a ValueError), see `parse_limit`.
    """
    match = _RATE.fullmatch(text.strip()[:64].lower())
    if match is None:
        raise wrong("not a rate", _RATE_HINT)
    number, factor, counted, period, of_stream, burst, burst_factor = (found or "" for found in match.groups())
    units = _tokens(number, factor)
    most = _tokens(burst, burst_factor) if burst else units
    if not (0 < units <= RATE_MAX and 0 < most <= RATE_MAX):
        raise wrong(f"a rate is at least 1 and at most {RATE_MAX}", "Leave it out for no rate.")
    if of_stream and counted != "tokens":
        raise wrong("a stream is one request", _RATE_HINT)
    return Counted.OF_STREAM if of_stream else Counted(counted), Rate(units, _PERIODS[period], most)


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine only. Names other than localhost: no."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _root_url(url: str) -> str:
    """Normalise a server's root: lower case, no default port, no trailing slash; else raise."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong("not a URL", _URL_HINT) from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise wrong("must start with http:// or https:// and a host", _URL_HINT)
    if "@" in parts.netloc:
        raise wrong("a URL holds no user or password", 'Put the upstream key into "key", from the environment.')
    if parts.path not in ("", "/") or "?" in url or "#" in url:
        raise wrong("a URL holds no path and no query", f"{_URL_HINT[:-1]}, without /v1.")
    if not re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", parts.hostname) or port == 0:
        raise wrong("not a host and port", _URL_HINT)
    shown = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{_bracketed(parts.hostname)}{shown}"


def _tokenizer_file(path: Path) -> Path:
    """Find the tokenizer.json that is meant; `Path.is_file` would raise on names that are too long."""
    for candidate in (path, path / "tokenizer.json"):
        if os.path.isfile(candidate):
            return candidate
    raise wrong("no tokenizer there", "Name a tokenizer.json or a directory that holds one, or leave it out.")


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise wrong("must be 64 hex digits", 'Write the output of: printf %s "$SECRET" | sha256sum')
    return text.lower()


def _header_safe(secret: SecretStr) -> SecretStr:
    """An upstream key is sent in a header, where a line break would be somebody else's header."""
    if not re.fullmatch(r"[!-~]{1,4096}", secret.get_secret_value()):
        raise wrong("must be printable ASCII without spaces, and not empty", 'Write key: "${NAME}" and set NAME.')
    return secret


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,253}", text):
        raise wrong("not an address to listen on", 'Write an address such as 127.0.0.1, "::1" or 0.0.0.0.')
    return text


def _host_port(replica: dict[str, Any]) -> str:
    """Name a replica that has no name. The URL is absent when it was wrong, which is an error of its own.

    Clients see the name, so beyond this machine it does not tell the address.
    """
    parts = urlsplit(replica.get("url", "http://unknown"))
    if not is_loopback(parts.hostname or ""):
        return f"replica-{sha256(parts.geturl().encode()).hexdigest()[:8]}"
    return f"{_bracketed(parts.hostname or '')}:{parts.port or _DEFAULT_PORTS[parts.scheme]}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


Port = Annotated[int, Field(ge=0, le=65535)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
Host = Annotated[str, AfterValidator(_host)]
# Names end up in headers, metric labels and tables: printable, bounded, no spaces where a header has them.
Label = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[!-~]+$")]
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\s\x00-\x1f\x7f]+$")]
Budget = Annotated[Limit, BeforeValidator(lambda v: parse_limit(str(v)) if isinstance(v, str | int) else v)]
PaceOf = Annotated[tuple[Counted, Rate], BeforeValidator(lambda v: parse_rate(v) if isinstance(v, str) else v)]
Dollars = Annotated[int, BeforeValidator(lambda v: _dollars(str(v)))]  # for a million tokens, in micro-dollars


class Listen(Part):
    """Where the gateway listens. Port 0 is any free port. The admin port is for operators, so: loopback."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    admin_host: Host = "127.0.0.1"
    admin_port: Port = 8081


class Replica(Part):
    """One vLLM server. url: normalised root; key: sent to it as a bearer token; name: default host:port.

    weight: how much it takes beside the others of its model.
    """

    url: Annotated[str, AfterValidator(_root_url)]
    role: Literal["active", "standby"] = "active"
    key: Annotated[SecretStr, AfterValidator(_header_safe)] | None = None
    weight: float = Field(default=1.0, ge=0.01, le=1000)
    name: Label = Field(default_factory=_host_port)

    @property
    def host(self) -> str:
        """Host name or address, lower case, without the brackets of IPv6."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """TCP port, also where the URL leaves it to the scheme."""
        return urlsplit(self.url).port or _DEFAULT_PORTS[urlsplit(self.url).scheme]

    @property
    def tls(self) -> bool:
        """Whether the server is spoken to over TLS."""
        return self.url.startswith("https:")


class Model(Part):
    """One served model and its replicas. tokenizer: the tokenizer.json itself, where there is one.

    cheaper: the model that answers in its stead while a breaker is degraded for long, or its servers are too busy.
    scheduled: its servers run with --scheduling-policy priority, and are told each request's.
    context_tokens: how long a prompt may be, where the model answers well only below its window.
    """

    name: Name
    tokenizer: Annotated[Path, AfterValidator(_tokenizer_file)] | None = None
    cheaper: Name | None = None
    context_tokens: int | None = Field(default=None, ge=1, le=2**31)
    scheduled: bool = False
    timeouts: ModelTimes = ModelTimes()
    replicas: tuple[Replica, ...] = Field(min_length=1, max_length=256)


class ModelPrice(Part):
    """What a model costs, in dollars for a million tokens. If unsaid, cached is as input and reasoning as output."""

    model: Name
    input: Dollars
    output: Dollars
    cached: Dollars | None = None
    reasoning: Dollars | None = None

    @property
    def price(self) -> Price:
        """The same, as the books take it."""
        cached = self.input if self.cached is None else self.cached
        return Price(self.input, self.output, cached, self.output if self.reasoning is None else self.reasoning)


class Bounded(Part):
    """Whatever has limits: its own, and those of each session, agent and turn within it.

    over_context: what becomes of a prompt that is too long; unsaid, what a wider scope says, and at last refuse.
    tier: one of `tiers`; unsaid, what a wider scope says, and at last the one named default, if there is one.
    """

    limits: tuple[Budget, ...] = Field(default=(), max_length=32)
    each_session: tuple[Budget, ...] = Field(default=(), max_length=32)
    each_agent: tuple[Budget, ...] = Field(default=(), max_length=32)
    each_turn: tuple[Budget, ...] = Field(default=(), max_length=32)
    rates: tuple[PaceOf, ...] = Field(default=(), max_length=8)
    breaker: Breaker | None = None
    timeouts: TurnTimes | None = None
    over_context: Literal["refuse", "truncate"] | None = None
    tier: TierName | None = None

    @property
    def each(self) -> dict[str, tuple[Limit, ...]]:
        """The latter, by level."""
        return {SESSION: self.each_session, AGENT: self.each_agent, TURN: self.each_turn}


class DeclaredKey(Bounded):
    """An API key given by its hash. tokens, limits: its budgets; without any there is no bound of its own."""

    user: Name
    org: Name | None = None
    team: Name | None = None
    sha256: Sha256
    tokens: Budget | None = None

    @property
    def budgets(self) -> tuple[Limit, ...]:
        """All of them."""
        return self.limits if self.tokens is None else (self.tokens, *self.limits)


class DeclaredBudget(Bounded):
    """Limits of an org, or of a team or a user, within an org where one is named."""

    org: Name | None = None
    team: Name | None = None
    user: Name | None = None

    @property
    def scope(self) -> str:
        """Whose they are."""
        within = () if self.org is None else (self.org,)
        for level, name in (("team", self.team), ("user", self.user)):
            if name is not None:
                return scope(level, *within, name)
        return scope("org", *within)


class Limits(Part):
    """How much of everything there may be; each protects memory, or another tenant."""

    body_bytes: int = Field(default=16 * 2**20, ge=1024, le=2**30)  # one request body: images are inline
    head_bytes: int = Field(default=16_384, ge=1024, le=2**20)  # a request's whole head; at most 128 headers
    client_connections: int = Field(default=8192, ge=1, le=1_000_000)  # at once, on each port; beyond: turned away
    requests_in_flight: int = Field(default=2000, ge=1, le=1_000_000)  # beyond: refused as overloaded
    legs: int = Field(default=4, ge=1, le=64)  # servers tried for one request, one after the other
    hedges: int = Field(default=8, ge=0, le=64)  # legs beside silent ones, per request; 0 waits for between_tokens_s
    hedges_per_s: float = Field(default=10, ge=0, le=10_000)  # of all requests together: overload must not feed itself
    hedges_burst: int = Field(default=64, ge=1, le=100_000)  # when a server with many streams hangs
    choices: int = Field(default=16, ge=1, le=128)  # `n`: each choice is a leg of its own after a loss
    agent_depth: int = Field(default=8, ge=1, le=16)  # of planner/search/reader: 3
    agent_share: int = Field(default=50, ge=1, le=99)  # percent of what its parent may use, that an agent may
    prompts: int = Field(default=64, ge=1, le=2048)  # in one completions request; also bounds n times the prompts
    stop_strings: int = Field(default=16, ge=0, le=256)  # each is searched for after a failover
    event_bytes: int = Field(default=4 * 2**20, ge=4096, le=2**28)  # one SSE event: logprobs are wide
    answer_bytes: int = Field(default=64 * 2**20, ge=4096, le=2**32)  # one answer that is not streamed
    client_buffer_bytes: int = Field(default=2**18, ge=4096, le=2**28)  # unsent; full pauses the leg
    lease_tokens: int = Field(default=256, ge=1, le=2**20)  # per ledger commit; lost to a crash at most
    lease_low_tokens: int = Field(default=64, ge=0, le=2**20)  # asked for early: a commit takes a while
    idle_connections: int = Field(default=64, ge=0, le=10_000)  # kept open per replica


class Config(Part):
    """All of `holdfast.yaml`. Either `models` name their replicas, or `upstreams` are asked what they serve."""

    listen: Listen = Listen()
    workers: int = Field(default=1, ge=1, le=256)  # processes on this machine, each with a part of the clients
    workers_pinned: bool = False  # each stays on one core; for machines that have nothing else to do
    data: Path = Path("holdfast-data")  # absolute when it came from a file
    models: tuple[Model, ...] = Field(default=(), max_length=1024)
    upstreams: tuple[Replica, ...] = Field(default=(), max_length=1024)
    keys: tuple[DeclaredKey, ...] = Field(default=(), max_length=10_000)
    budgets: tuple[DeclaredBudget, ...] = Field(default=(), max_length=10_000)
    ledger: LedgerConfig = LedgerConfig()
    prices: tuple[ModelPrice, ...] = Field(default=(), max_length=1024)
    breaker: Breaker | None = None  # of every scope that has none of its own, nor one above it
    alerts: Alerts | None = None
    routing: Routing = Routing()
    admission: AdmissionConfig = AdmissionConfig()
    degrade: DegradeConfig = DegradeConfig()
    retries: RetriesConfig = RetriesConfig()
    tiers: tuple[TierConfig, ...] = Field(default=(), max_length=256)
    timeouts: Timeouts = Timeouts()
    health: HealthConfig = HealthConfig()
    integrity: IntegrityConfig = IntegrityConfig()
    warming: WarmingConfig = WarmingConfig()
    limits: Limits = Limits()
    share_prefix_cache: bool = False  # else each org gets its own cache_salt, and cannot time another's prefixes
    allow_media_urls: bool = False  # a client could make a server fetch from inside your network
    # For an exhausted budget, an int. Literal[402, ...] would refuse the text "402" that files hold.
    budget_status: Annotated[Literal[402, 403, 422, 429], BeforeValidator(lambda v: _as_int(v))] = 402
    admin_key_sha256: Sha256 | None = None  # needed when admin_host is not loopback

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """Every replica that was written down, of all models, in order."""
        return self.upstreams + tuple(replica for model in self.models for replica in model.replicas)


def _as_int(value: Any) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) else value
