"""Where the Redis is that gateways share: redis://user:password@host:6379/0."""

import re
from typing import NamedTuple
from urllib.parse import unquote

_URL = re.compile(r"(rediss?(?:\+cluster)?)://(?:([^:@/]*)(?::(.*))?@)?([^@/]+)(?:/([0-9]{0,4}))?")
_HOST_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_HINT = 'Write "redis://127.0.0.1:6379/0", rediss:// for TLS, or "redis+cluster://10.0.0.1:6379,10.0.0.2:6379".'


class VaultUrl(NamedTuple):
    """What such a URL says. addresses: host and port; of a cluster, some of them."""

    addresses: tuple[tuple[str, int], ...]
    tls: bool
    username: str | None
    password: str | None
    db: int


class NoVaultUrl(ValueError):
    """What is wrong with one, and what to write instead; never what it says, for that may be a password."""

    def __init__(self, message: str, hint: str = _HINT) -> None:
        super().__init__(f"{message}. {hint}")
        self.message, self.hint = message, hint


def parse_vault_url(text: str) -> VaultUrl:
    """Read redis://[[user]:password@]host[:port][/db], rediss:// for TLS, redis+cluster://host:port,host:port.

    What means something in a URL is percent-encoded in a password. Raises NoVaultUrl.
    """
    match = _URL.fullmatch(text)
    if match is None:
        raise NoVaultUrl("not the URL of a Redis server")
    scheme, username, password, hosts, db = match.groups()
    addresses = tuple(_address(one) for one in hosts.split(","))
    clustered = scheme.endswith("+cluster")
    if not clustered and len(addresses) > 1:
        raise NoVaultUrl("several hosts are a cluster", "Write redis+cluster:// before them, or name one.")
    if clustered and int(db or 0):
        raise NoVaultUrl("a cluster has no numbered databases", "Leave out what comes after the port.")
    user, secret = (unquote(part) if part else None for part in (username, password))
    return VaultUrl(addresses, scheme.startswith("rediss"), user, secret, int(db or 0))


def _address(text: str) -> tuple[str, int]:
    match = _HOST_PORT.fullmatch(text)
    port = int(match[3] or 6379) if match else 0
    if match is None or not 0 < port < 65_536:
        raise NoVaultUrl("not a host and port")
    return (match[1] or match[2]).lower(), port
