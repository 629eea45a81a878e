"""Cache salts: one org cannot time what another has in the prefix cache."""

import hmac
import os
from hashlib import sha256
from pathlib import Path

from gateway.books.tenants import Tenant

SECRET_BYTES = 32
KNOWN_MAX = 4096  # salts that are not worked out anew


class Salts:
    """Derives one salt per org (or user, where a key has no org) from a secret that never leaves the data directory."""

    def __init__(self, data: Path) -> None:
        self._secret = secret(data)
        self._known: dict[str, str] = {}

    def of(self, tenant: Tenant) -> str | None:
        """The salt for a tenant's requests; None while there are no keys, hence one tenant only."""
        if tenant.source == "open":
            return None
        name = f"org:{tenant.org}" if tenant.org is not None else f"user:{tenant.user}"
        salt = self._known.get(name)
        if salt is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            salt = self._known[name] = hmac.new(self._secret, name.encode(), sha256).hexdigest()[:32]
        return salt


def secret(data: Path) -> bytes:
    """Read a data directory's secret, making it on first use; only its owner can read it."""
    path = data / "salt.key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        found = path.read_bytes()
        if len(found) != SECRET_BYTES:
            raise OSError(f"{path} is damaged; remove it to have a new one made") from None
        return found
    with os.fdopen(descriptor, "wb") as file:
        made = os.urandom(SECRET_BYTES)
        file.write(made)
    return made
