"""Which vault a configuration means."""

import time

from gateway.books.vault.contract import Vault
from gateway.books.vault.sqlite import SqliteVault
from gateway.config import Config


def open_vault(config: Config) -> Vault:
    """The vault of these gateways: the server that is configured, else a file in the data directory.

    Nothing is connected or made yet.
    """
    url = config.ledger.server
    if url is None:
        return SqliteVault(config.data, time.time)
    from gateway.books.vault.redis import RedisVault  # its client takes longer to import than all of the rest
    from gateway.books.vault.redis_server import Login

    login = Login(url.tls, url.username, url.password, url.db)
    return RedisVault(url.addresses, login, replicas=config.ledger.replicas)
