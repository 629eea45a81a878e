"""What a scenario asks of a server of the fleet beside answers: what its plugin says, and damage to its pages."""

import json
import urllib.request
from typing import Any

from gateway.local.engine import Engine
from loadtests.gateway_process import until

CALL_S_MAX, IDLE_S_MAX = 20.0, 20.0


class EngineHand:
    """For one server of the fleet. secret: the fleet's."""

    def __init__(self, engine: Engine, secret: str) -> None:
        self.engine = engine
        self._secret = secret

    def status(self) -> dict[str, Any]:
        """What the plugin says of itself, as of now."""
        told: dict[str, Any] = self._call("GET", "/holdfast/status")
        return told

    def corrupt(self) -> int:
        """How many pages were found bad since its start, wherever."""
        return sum(int(one["pages"]) for one in self.status()["corrupt"])

    def forget(self) -> None:
        """Empty its prefix cache once it is idle: what it reads next is in the store, or is computed.

        Raises AssertionError where it is not idle in time.
        """
        until(
            lambda: self._call("POST", "/reset_prefix_cache").get("success"), IDLE_S_MAX, f"an idle {self.engine.label}"
        )

    def held(self, prompt: list[int]) -> dict[str, Any]:
        """What a running request of this prompt holds there (page_hand.py); empty where there is none."""
        return dict(self._told("holdfast_held", prompt))

    def damage(self, kind: str, block: int, other: int, seed: int) -> bool:
        """Damage the page in a block; whether it is another one now."""
        return str(self._told("holdfast_damage", kind, block, other, seed)) == "True"

    def damage_held(self, prompt: list[int], place: str, kind: str, page_tokens: int, seed: int) -> dict[str, Any]:
        """Damage a page of a running request, where it has one of that place; empty where it has none."""
        return dict(self._told("holdfast_damage_held", prompt, place, kind, page_tokens, seed))

    def _told(self, method: str, *args: Any) -> Any:
        body = {"method": method, "args": [self._secret, *args]}
        (result,) = self._call("POST", "/collective_rpc", body)["results"]
        return result

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.engine.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=CALL_S_MAX) as response:
            return json.loads(response.read() or b"null")
