"""The part of `holdfast.yaml` that says where budgets are kept."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from gateway.config_part import Part, wrong
from gateway.vault_url import NoVaultUrl, VaultUrl, parse_vault_url
from guards.scope import parsed

_REST = re.compile(r"([0-9]{1,5})\s*([hd])")
_REST_HINT = 'Write hours or days, such as "36h" or "7d"; "never" where an operator sees to it.'
REST_S_MIN, REST_S_MAX = 3600, 365 * 86_400


def parse_rest(text: str) -> float | None:
    """Read for how long a gateway may be away, such as "7d" or "36h", in seconds; None for "never".

    Raises PydanticCustomError (a ValueError), see `parse_limit`.
    """
    text = text.strip()[:64].lower()
    if text in ("never", "0"):
        return None
    match = _REST.fullmatch(text)
    if match is None:
        raise wrong("not a time", _REST_HINT)
    rest_s = float(int(match[1]) * {"h": 3600, "d": 86_400}[match[2]])
    if not REST_S_MIN <= rest_s <= REST_S_MAX:
        raise wrong("from an hour to a year", _REST_HINT)
    return rest_s


def _vault_url(url: SecretStr) -> SecretStr:
    try:
        parse_vault_url(url.get_secret_value())
    except NoVaultUrl as error:
        raise wrong(error.message, error.hint) from None
    return url


def _scope(text: str) -> str:
    try:
        return parsed(text)
    except ValueError:
        raise wrong("not a scope", "Write org:NAME, team:ORG/NAME, user:ORG/NAME, user:NAME or key:ID.") from None


Rest = Annotated[
    float | None,
    Field(ge=REST_S_MIN, le=REST_S_MAX),
    BeforeValidator(lambda v: parse_rest(str(v)) if isinstance(v, str | int) else v),
]


class LedgerConfig(Part):
    """Where budgets are kept. url: of the Redis or Valkey that many gateways share; else SQLite, for one machine.

    replicas: how many must have a grant before it counts. when_down: what happens to requests while the server cannot
    be reached: they are refused, or spend what their gateway has leased until that is gone. leased_scopes: those that
    go on so where others are refused.
    write_off_after: a gateway that nobody has heard of for so many seconds is written off; None: never. one_off: this
    data directory will not be started again, so that the gateway writes itself off at its end.
    """

    url: Annotated[SecretStr, AfterValidator(_vault_url)] | None = None
    replicas: int = Field(default=0, ge=0, le=16)
    when_down: Literal["refuse", "leased"] = "refuse"
    leased_scopes: tuple[Annotated[str, AfterValidator(_scope)], ...] = Field(default=(), max_length=10_000)
    write_off_after: Rest = 30 * 86_400.0
    one_off: bool = False

    @property
    def server(self) -> VaultUrl | None:
        """What the URL says."""
        return None if self.url is None else parse_vault_url(self.url.get_secret_value())
