"""What an operator may say, in `kv_connector_extra_config`. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GATE_WORDS = {"always": 1.0, "off": 0.0}
WHAT_MAY_BE_UNPROTECTED = (
    "async-scheduling", "v2-runner", "speculative-decoding", "pipeline-parallel", "weights", "other-connectors",
)  # fmt: skip


class SettingsRefused(ValueError):
    """A setting that cannot be; says which, and what to write instead."""


@dataclass(frozen=True, slots=True)
class Settings:
    """verify: the share of locally hit pages that are verified before they are used, 0 to 1.
    scrub_share: of a step's time, for checking pages that are resident; None: all pages that running requests hold,
        after every forward pass. scrub_floor_s: at least so long in each step, in seconds.
    weights_share: of all time, for reading the weights again, in case they change without anybody saying so; 0: never.
    tails: whether the page that a request is filling is checked too, before it is written on: one such page in each
        step, or, with `scrub_share` None, all.
    abort: whether a running request that holds a corrupt page ends with an error, instead of being computed anew.
    store: where pages lie outside of the engine, an address that `vllm_plugin.store` opens; none if empty.
    unprotected: what vLLM may do although running requests are not protected then, see refusals.py.
    continues: whether requests that another server began are continued, see restore/.
    """

    verify: float = 1.0
    scrub_share: float | None = 0.003
    scrub_floor_s: float = 0.0
    weights_share: float = 0.001
    tails: bool = True
    abort: bool = False
    unprotected: frozenset[str] = frozenset()
    store: str = ""
    continues: bool = True

    @property
    def tail_steps(self) -> int:
        """In how many steps one page that is being filled is looked at: as seldom as pages that are hit."""
        return round(1 / self.verify) if self.verify else 1

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Settings":
        """From the JSON of the command line. Raises SettingsRefused."""
        known = {
            "verify", "scrub", "scrub_floor_ms", "weights", "tails", "on_corruption", "unprotected", "store",
            "continue",
        }  # fmt: skip
        if unknown := sorted(set(config) - known):
            raise SettingsRefused(f"{', '.join(unknown)}: unknown; write one of {', '.join(sorted(known))}")
        return cls(
            verify=_verify(config.get("verify", "always")),
            scrub_share=_scrub(config.get("scrub", 0.003)),
            scrub_floor_s=_number("scrub_floor_ms", config.get("scrub_floor_ms", 0), 0, 1000) / 1000,
            weights_share=_number("weights", config.get("weights", 0.001), 0, 1),
            tails=_one_of("tails", config.get("tails", True), {True: True, False: False}),
            abort=_one_of(
                "on_corruption", config.get("on_corruption", "recompute"), {"recompute": False, "abort": True}
            ),
            unprotected=_unprotected(config.get("unprotected", [])),
            store=_address(config.get("store", "")),
            continues=_one_of("continue", config.get("continue", True), {True: True, False: False}),
        )


def _verify(said: Any) -> float:
    if said in GATE_WORDS:
        return GATE_WORDS[said]
    if isinstance(said, str) and said.startswith("sampled:"):
        try:
            return _number("verify", float(said.removeprefix("sampled:")), 0, 1)
        except ValueError:
            pass
    raise SettingsRefused(f"verify: {said!r}; write \"always\", \"off\" or \"sampled:0.1\"")


def _scrub(said: Any) -> float | None:
    return None if said == "all" else _number("scrub", said, 0, 1)


def _number(name: str, said: Any, least: float, most: float) -> float:
    if isinstance(said, bool) or not isinstance(said, int | float) or not least <= said <= most:
        raise SettingsRefused(f"{name}: {said!r}; write a number from {least} to {most}")
    return float(said)


def _one_of(name: str, said: Any, words: Mapping[Any, bool]) -> bool:
    if isinstance(said, list | dict) or said not in words:
        raise SettingsRefused(f"{name}: {said!r}; write one of {', '.join(map(str, words))}")
    return words[said]


def _address(said: Any) -> str:
    if not isinstance(said, str) or (said and "://" not in said):
        raise SettingsRefused(f'store: {said!r}; write an address, such as "lmdb:///dev/shm/holdfast"')
    return said


def _unprotected(said: Any) -> frozenset[str]:
    words = [said] if isinstance(said, str) else said
    if not isinstance(words, list) or any(word not in WHAT_MAY_BE_UNPROTECTED for word in words):
        raise SettingsRefused(f"unprotected: {said!r}; write a list of {', '.join(WHAT_MAY_BE_UNPROTECTED)}")
    return frozenset(words)
