"""The address of a store on Redis or Valkey, read, and the key with which its pages are sealed."""

import math
import os
import re
import shlex
import stat
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from vllm_plugin.store.address import OPTIONS, amount
from vllm_plugin.store.contract import StoreRefused

KEY_BYTES = 32
SECRET_BYTES_MAX = 1024
SERVERS_MAX = 64
EXAMPLE = "redis://a:6379,b:6379/0?copies=2&key_file=/etc/holdfast/pages.key"
FILES = ("key_file", "password_file", "ca_file")
SCHEMES = ("redis", "rediss")


class Address(NamedTuple):
    """servers: host and port of each; tls: whether it is spoken with them; ca_file: who must vouch for them, None: whom
    the system trusts. copies: on how many of them a page is. key: 32 bytes; password: of the servers.

    size_bytes: how much there may be on each server; the rest as of `address.Address`.
    """

    servers: tuple[tuple[str, int], ...]
    database: int
    key: bytes
    password: str | None = None
    copies: int = 1
    size_bytes: int = 8 * 2**30
    retention_s: float = 3600.0
    queue_bytes: int = 256 * 2**20
    tls: bool = False
    ca_file: Path | None = None

    @property
    def name(self) -> str:
        """For people; nothing in it is secret."""
        return ",".join(f"{host}:{port}" for host, port in self.servers)


def read(url: str) -> Address:
    """Read `redis://a:6379,b:6379/0?copies=2&...&key_file=/F`, and the files it names. Raises StoreRefused.

    rediss:// is the same by TLS.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:  # not repeated: it is a secret, and addresses are logged
        raise StoreRefused(f"{parts.scheme}://: no password in the address: write it to a file, password_file=/ITS")
    servers = tuple(_server(url, text) for text in parts.netloc.split(","))
    database = re.fullmatch(r"/?|/(\d{1,3})", parts.path)
    if not database or len(set(servers)) != len(servers) or len(servers) > SERVERS_MAX or parts.fragment:
        raise StoreRefused(f"{url}: write {EXAMPLE}, each server once, {SERVERS_MAX} at most")
    values = dict(_option(url, name, text) for name, text in parse_qsl(parts.query, keep_blank_values=True))
    copies = values.get("copies", 1)
    if copies > len(servers):
        raise StoreRefused(f"{url}: copies={copies}, on {len(servers)} servers; name more servers, or write copies=1")
    if "key_file" not in values:
        made = _making(Path("/F"))
        raise StoreRefused(f"{url}: pages that leave the host are sealed with a key: {made}, and key_file=/F")
    tls, ca_file = parts.scheme == "rediss", values.get("ca_file")
    if ca_file and not tls:
        raise StoreRefused(f"{url}: ca_file={ca_file} is of TLS: write rediss://")
    if ca_file and not os.access(ca_file, os.R_OK):
        raise StoreRefused(f"{ca_file} cannot be read: write certificates there, in PEM, or leave out ca_file")
    key = _key(values.pop("key_file"))
    password_file = values.pop("password_file", None)
    password = _secret(password_file).decode("utf-8", "replace").strip() if password_file else None
    return Address(servers, int(database[1] or 0), key, password, tls=tls, **values)


def _server(url: str, text: str) -> tuple[str, int]:
    found = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?", text)
    port = int(found[2] or 6379) if found else 0
    if not found or not 0 < port < 2**16:
        raise StoreRefused(f"{url}: {text!r} is no host and port; write {EXAMPLE}")
    return found[1].strip("[]"), port


def _option(url: str, name: str, text: str) -> tuple[str, Any]:
    if name in FILES:
        if not text.startswith("/"):
            raise StoreRefused(f"{url}: {name}={text} is no absolute path; write {name}=/etc/holdfast/pages.key")
        return name, Path(text)
    if name == "copies":
        if not re.fullmatch(r"[1-9]\d?", text):
            raise StoreRefused(f"{url}: copies={text} is no number of servers; write copies=2")
        return name, int(text)
    if name not in OPTIONS:
        raise StoreRefused(f"{url}: there is no option {name}; there are copies, {', '.join((*OPTIONS, *FILES))}")
    field, units, least, example = OPTIONS[name]
    value = amount(text, units)
    if value is None or not least <= value < math.inf:
        raise StoreRefused(f"{url}: {name}={text} is no amount of at least {least}; write {name}={example}")
    return field, value


def _key(file: Path) -> bytes:
    """32 bytes, as they are or as 64 hexadecimal digits. What is wrong with it is said without it."""
    said = _secret(file)
    if len(said) == KEY_BYTES:
        return said
    if re.fullmatch(rb"[0-9A-Fa-f]{64}", said.strip()):
        return bytes.fromhex(said.strip().decode())
    raise StoreRefused(f"{file}: a key has {KEY_BYTES} bytes, or 64 hexadecimal digits; make one: {_making(file)}")


def _secret(file: Path) -> bytes:
    """What is in a file that only its owner can read. Raises StoreRefused."""
    try:
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise StoreRefused(f"{file} is no file")
            if status.st_uid not in (0, os.geteuid()):
                raise StoreRefused(f"{file} belongs to somebody else: chown {os.geteuid()} {shlex.quote(str(file))}")
            if status.st_mode & 0o077:
                raise StoreRefused(f"{file} can be read by others: chmod 600 {shlex.quote(str(file))}")
            return opened.read(SECRET_BYTES_MAX)
    except FileNotFoundError:
        raise StoreRefused(f"{file} is not there: {_making(file)}") from None
    except OSError as error:
        raise StoreRefused(f"{file}: {error.strerror}") from error


def _making(file: Path) -> str:
    quoted = shlex.quote(str(file))
    return f"(umask 077; openssl rand -hex 32 > {quoted})"
