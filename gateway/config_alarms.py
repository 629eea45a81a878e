"""The parts of `holdfast.yaml` that watch spending: breakers, and alerts."""

import base64
import re
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from gateway.config_part import Part, wrong
from guards.budget import Window
from guards.burn import DAY, MONTH, OFF, PERIODS_S, Plan, State, Tier

_ALARM = re.compile(r"([0-9]{1,5}(?:\.[0-9]{1,3})?)x over ([0-9]{1,4})\s*(min|m|h)")
_ALARM_HINT = 'Write how fast, and for how long, such as "14.4x over 1h" or "4.8x over 15m".'
_SECONDS = {"m": 60, "min": 60, "h": 3600}
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9])?)\s*%")
_SHARE_HINT = 'Write shares of a budget, such as "80%".'
_URL_HINT = 'Write an address such as "https://hooks.example.com/holdfast".'
_SECRET_HINT = 'Write secret: "${NAME}" and set NAME to whsec_ and the base64 of 24 to 64 random bytes.'
ANSWER_TOKENS = Plan().answer_tokens


def parse_alarm(text: str) -> tuple[float, float]:
    """Read an alarm, such as "14.4x over 1h": a rate, and the seconds over which it holds.

    Raises PydanticCustomError (a ValueError) whose context holds `message` and `hint`.
    """
    match = _ALARM.fullmatch(text.strip()[:64].lower())
    if match is None:
        raise wrong("not an alarm", _ALARM_HINT)
    rate, long_s = float(match[1]), int(match[2]) * _SECONDS[match[3]]
    if not (rate > 1 and 60 <= long_s <= 7 * 86_400):
        raise wrong("an alarm is above 1x, over a minute to a week", _ALARM_HINT)
    return rate, float(long_s)


def parse_share(text: str) -> float:
    """Read a share of a budget, such as "80%". Raises PydanticCustomError, see `parse_alarm`."""
    match = _SHARE.fullmatch(text.strip()[:16])
    if match is None or not 0 < float(match[1]) <= 100:
        raise wrong("not a share of a budget", _SHARE_HINT)
    return float(match[1]) / 100


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong("not a URL", _URL_HINT) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or not url.isascii():
        raise wrong("must start with https:// and a host", _URL_HINT)
    if "@" in parts.netloc or "#" in url or re.search(r"[\s\x00-\x1f]", url):
        raise wrong("a webhook's URL holds no user, no password and no fragment", _URL_HINT)
    return url


def _signing(secret: SecretStr) -> SecretStr:
    try:
        key = base64.b64decode(secret.get_secret_value().removeprefix("whsec_"), validate=True)
    except ValueError:
        raise wrong("must be whsec_ and base64", _SECRET_HINT) from None
    if not 24 <= len(key) <= 64:
        raise wrong("must hold 24 to 64 bytes", _SECRET_HINT)
    return secret


Alarm = Annotated[tuple[float, float], BeforeValidator(lambda v: parse_alarm(v) if isinstance(v, str) else v)]
Share = Annotated[float, BeforeValidator(lambda v: parse_share(v) if isinstance(v, str) else v)]


class Alarms(Part):
    """When a breaker trips: at so many times the rate that just lasts the window. What is unsaid is the preset."""

    open: Alarm | None = None
    degrade: Alarm | None = None


class Breaker(Part):
    """How the limits of a scope, and of all within it, are watched; «on» takes the presets. Other windows: not."""

    on: bool = True
    day: Alarms = Alarms()
    month: Alarms = Alarms()
    answer_tokens: int = Field(default=ANSWER_TOKENS, ge=1, le=2**20)  # of an answer, while degraded

    @model_validator(mode="before")
    @classmethod
    def _in_one_word(cls, data: Any) -> Any:
        if isinstance(data, str | bool):
            if data not in ("on", "off", True, False):
                raise wrong("must be on or off", "Write breaker: on, or day: and month: below it.")
            return {"on": data in ("on", True)}
        return data

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        plan = self.plan
        for window, period_s in PERIODS_S.items():
            tiers = plan.tiers(window)
            if any(tier.rate * tier.long_s >= period_s for tier in tiers):
                raise wrong(f"the budget of a {window} would be gone before the alarm", "Make it shorter, or less.")
            if tiers and tiers[0].rate <= tiers[1].rate:
                hint = f"Unsaid, they are {_worded(window)}."
                raise wrong(f"open must be above degrade for a {window}", hint)
        return self

    @property
    def plan(self) -> Plan:
        """The same, as breakers take it."""
        if not self.on:
            return OFF
        return Plan(_tiers(self.day, DAY), _tiers(self.month, MONTH), self.answer_tokens)


class Webhook(Part):
    """Where alerts are sent. allow_private: the address may be within the house, and http."""

    url: Annotated[str, Field(max_length=2048), AfterValidator(_address)]
    secret: Annotated[SecretStr, AfterValidator(_signing)]
    allow_private: bool = False

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if not self.url.startswith("https:") and not self.allow_private:
            raise wrong("a webhook beyond the house is https", "Write https://, or allow_private: true.")
        return self


class Alerts(Part):
    """At which shares of each budget somebody is told, and where."""

    at: tuple[Share, ...] = Field(default=(0.5, 0.8, 1.0), max_length=16)
    webhook: Webhook | None = None


def _tiers(said: Alarms, preset: tuple[Tier, ...]) -> tuple[Tier, ...]:
    """The alarms that hold: those that are said, else the preset's."""
    found = []
    for alarm, tier in zip((said.open, said.degrade), preset, strict=True):
        found.append(tier if alarm is None else Tier(alarm[1], alarm[0], tier.state))
    assert [tier.state for tier in found] == [State.OPEN, State.DEGRADED]
    return tuple(found)


def _worded(window: Window) -> str:
    opens, degrades = Plan().tiers(window)
    return " and ".join(f"{tier.rate:g}x over {tier.long_s / 60:g}m" for tier in (opens, degrades))
