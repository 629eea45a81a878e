"""A server comes back with other weights under the same name, beside one that still has the old ones."""

import json
import signal
from collections.abc import Sequence
from typing import Any

from gateway.local.engine import Engine, stop_fleet, tiny_model
from loadtests.answers import Answer
from loadtests.gameday.engine_hand import EngineHand
from loadtests.gameday.fleet import BLOCK_TOKENS, SIZE
from loadtests.gameday.ground import charged, chat
from loadtests.gameday.scenario import Observations, Probe, Scenario, clean, trials, unless_missed
from loadtests.gateway_process import until

OTHER_SEED = 1  # of the new weights; tokenizer, chat template and configuration are the old ones'
PROMPTS, STREAMS = 6, 4
PROMPT_IDS = (300, 8_000)
SHORT, LONG = 8, 400  # tokens; the long ones still run when their server dies
COMPLETIONS = "/v1/completions"
TOLD_S_MAX, END_S_MAX = 30.0, 60.0
LOOKS_MAX = 3
UNCONTINUABLE = "uncontinuable"
# Streams stay with the fingerprint that they began under; without it they may go on at other weights.
BOUND: dict[str, Any] = {"integrity": {"same_fingerprint": True, "ask_every_s": 0.5}}


class ModelChange(Scenario):
    """The second server is killed and started with other weights, at its address; then the first one dies."""

    name = "model-change"
    title = "a server restarted with other weights"
    hypothesis = (
        "no page of the old weights is read by the new, the gateway says that its servers differ, and where the last "
        "old server dies its streams end with an error by name: none goes on with the new weights"
    )
    weight = 6
    why = "every deployment changes weights now and then, one server after the other, while streams run"
    limit_s = 300.0

    def steady(self) -> Observations:
        """Both servers have the same weights: the second one reads from the store what the first one computed."""
        ground = self.ground
        self.old, self.second = ground.fleet.engines
        tiny_model(size=SIZE, seed=OTHER_SEED)
        self.bodies = self._bodies()
        self.gateway = ground.gateway(**BOUND)
        self.key = self.gateway.key("gameday")
        self.first = self._ask(self.old, self.bodies)
        loaded, equal = 0, list[bool]()
        hand = EngineHand(self.second, ground.fleet.secret)
        for _ in range(LOOKS_MAX):  # a busy server may not hear of the store in time, and computes
            hand.forget()
            before = _loaded(self.second, ground.fleet.secret)
            again = self._ask(self.second, self.bodies)
            equal += [one.ids == other.ids != [] for one, other in zip(self.first, again, strict=True)]
            if loaded := _loaded(self.second, ground.fleet.secret) - before:
                break
        return {
            "equal": equal,
            "loaded": loaded,
            "warnings": self._warnings(),
        }

    def inject(self) -> Observations:
        """Kill the second server, and start one with other weights at its address."""
        ground = self.ground
        self.second.kill(signal.SIGKILL)
        self.second.stop()
        (self.new,) = ground.fleet.servers(
            1, "other-weights", model=tiny_model(size=SIZE, seed=OTHER_SEED), port=self.second.port
        )
        ground.cleanup.callback(stop_fleet, [self.new])
        return {"restarted": self.new.address, "seed_of_weights": OTHER_SEED}

    def observe(self) -> Observations:
        """Ask the new server what the old one was asked; then begin streams at the old one, and kill it."""
        ground = self.ground
        got, loaded, read = self._looked()
        # A salt of their own keeps them from all pages: so they are computed.
        computed = self._ask(self.new, [body | {"cache_salt": f"salt {n}"} for n, body in enumerate(self.bodies)])
        told = _waited(lambda: bool(self._warnings()))
        said = [
            chat(f"Tell me {n} things.", max_tokens=LONG, ignore_eos=True, repetition_penalty=1.1 + n / 20)
            for n in range(STREAMS)
        ]
        streams = ground.clients.begin(self.gateway.url, said, self.key, seconds=END_S_MAX)
        until(lambda: all(one.tokens > SHORT for one in streams.answers) or streams.done, END_S_MAX, "streams")
        where = [one.replica for one in streams.answers]
        at_the_kill = [one.tokens for one in streams.answers]
        self.old.kill(signal.SIGKILL)
        ended = streams.wait()
        (later,) = ground.clients.ask(self.gateway.url, [chat("And now?", max_tokens=SHORT)], self.key)
        return {
            "others": [one.ids != other.ids for one, other in zip(self.first, got, strict=True)],
            "computed": [one.ids == other.ids != [] for one, other in zip(got, computed, strict=True)],
            "loaded": loaded, "read": read, "told": told, "warnings": self._warnings(),
            "began_at_the_old": [one == self.old.address for one in where], "tokens_at_the_kill": at_the_kill,
            "ends": [_end(one) for one in ended], "resumed": [_resumed(self.gateway, one) for one in ended],
            "charged_once": charged(self.gateway, ended),
            "later": later.replica == self.new.address and later.done, "faults": self.gateway.faults(),
        }  # fmt: skip

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [
            trials("two servers of the same weights answer alike", seen["equal"]),
            Probe("the second one reads the first one's pages", int(seen["loaded"] > 0), 1),
            Probe("the gateway says nothing of weights that differ", int(not seen["warnings"]), 1),
        ]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        ends, loaded = seen["ends"], seen["loaded"]
        # Whole streams are those that had ended before the kill only where no second server worked on them.
        over = set(ends) == {"length"} and not any(seen["resumed"])
        missed = "no stream ran at the old server when that died" if over or not any(seen["began_at_the_old"]) else ""
        if not missed and not seen["read"]:
            missed = "the new server read not even its own pages from the store: nobody knows whether it looked"
        by_name = [] if over else [end == UNCONTINUABLE for end in ends]
        return unless_missed(missed, [
            trials("the new weights answer otherwise than the old", seen["others"]),
            trials("an answer of the new weights is the computed one", seen["computed"]),
            Probe("no page of the old weights is loaded by the new", int(loaded == 0), 1, f"{loaded} pages"),
            Probe("the gateway says that weights differ", int(seen["told"]), 1),
            trials("a stream of the old weights ends by name", by_name, ends),
            trials("none of them goes on at the new", [not resumed for resumed in seen["resumed"]]),
            trials("what came of it is charged exactly once", seen["charged_once"]),
            Probe("a new request is answered by the new weights", int(seen["later"]), 1),
            clean(seen["faults"]),
        ])  # fmt: skip

    # ---- leaves

    def _bodies(self) -> list[dict[str, Any]]:
        """Prompts that nobody has seen, of some pages each."""
        rng, length = self.ground.rng, 4 * BLOCK_TOKENS + 20
        return [_body([rng.randrange(*PROMPT_IDS) for _ in range(length)]) for _ in range(PROMPTS)]

    def _looked(self) -> tuple[list[Answer], int, int]:
        """Ask the new server what the old one has computed and stored.

        Returns the answers to `bodies`; how many pages it read that were not its own; and how many of its own, when it
        was asked once more: a busy server may not hear of the store in time, and computes. So while there are neither,
        both are asked something new.
        """
        first, others, own = list[Answer](), 0, 0
        hand = EngineHand(self.new, self.ground.fleet.secret)
        for number in range(LOOKS_MAX):
            bodies = self._bodies() if number else self.bodies
            if number:
                self._ask(self.old, bodies)
            before = _loaded(self.new, self.ground.fleet.secret)
            got = self._ask(self.new, bodies)
            others = _loaded(self.new, self.ground.fleet.secret) - before
            hand.forget()
            self._ask(self.new, bodies)
            own = _loaded(self.new, self.ground.fleet.secret) - before - others
            first = first or got
            if others or own:
                break
        return first, others, own

    def _ask(self, engine: Engine, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
        """A server directly: whose pages it reads is its own business, and not the gateway's."""
        return self.ground.clients.ask(engine.url, bodies, path=COMPLETIONS)

    def _warnings(self) -> list[str]:
        """What the gateway says of weights that differ."""
        told = json.loads(self.gateway.get("/admin/replicas", self.gateway.admin_url)[1])
        return [line for line in told.get("warnings", ()) if "weights" in line]


def _body(prompt: Sequence[int]) -> dict[str, Any]:
    return {"model": "tiny", "prompt": list(prompt), "max_tokens": SHORT, "temperature": 0, "ignore_eos": True}


def _loaded(engine: Engine, secret: str) -> int:
    """Pages that a server has read from the store so far."""
    return int(EngineHand(engine, secret).status()["pages"]["loaded"])


def _end(answer: Answer) -> str:
    """How it ended, in a word."""
    return str((answer.error or {}).get("code") or (answer.finish[0] if answer.finish else None) or "no end")


def _resumed(gateway: Any, answer: Answer) -> bool:
    """Whether a second server worked on it, by the journal."""
    facts = [one for one in gateway.journal() if one.get("request_id") == answer.request_id]
    return len({one["replica"] for one in facts if one["kind"] == "leg.opened"}) > 1


def _waited(look: Any) -> bool:
    try:
        return bool(until(look, TOLD_S_MAX))
    except AssertionError:
        return False
