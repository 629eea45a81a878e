"""KV pages that go bad in the servers' memory and in their page store, in every way the plugin tells apart."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from loadtests.answers import Answer
from loadtests.gameday.engine_hand import EngineHand
from loadtests.gameday.fleet import BLOCK_TOKENS
from loadtests.gameday.page_hand import PLACES
from loadtests.gameday.scenario import Missed, Observations, Probe, Scenario, trials
from loadtests.gameday.store_hand import ROUTES, StoreHand
from loadtests.gameday.streams import Streams
from loadtests.gateway_process import Gateway, until

COMPLETIONS = "/v1/completions"
IDS = (300, 8_000)  # of the model's vocabulary, nothing special among them
PROMPT_TOKENS = 4 * BLOCK_TOKENS + 20  # four full pages, and none is filled by a short answer
# Tokens of an answer: a short one fills no page, a long one has pages of its own.
SHORT, MIDDLE, LONG = 8, 24, 3 * BLOCK_TOKENS
# So many have come when a running request is hit, by place: its page of the answer is full, or it fills one.
HIT_AFTER = dict(zip(PLACES, (4, BLOCK_TOKENS + 20, 20), strict=True))
MOVED_MAX = 1e-4  # of the logarithm of a token's probability: float32, and one way to compute
OTHER = 99.0
KINDS = ("flip", "flips", "zero", "swap", "rows", "truncate", "copy")
STORED_KINDS = ("flip", "flips", "zero", "swap", "rows", "truncate", "replay")
PUT_KINDS = ("another request's", "another position's", "another tenant's", "another model's")
RESIDENT, STORED = "resident", "stored"
HELD = "held by a running request"
HELD_KINDS = ("flip", "zero", "copy")  # of each place of a running request
ROUNDS_MAX = 3  # tries to see which blocks a request has, or to damage one of them while it runs
WAIT_S_MAX = 20.0
BAD_MAX = 1  # corrupt pages that the second gateway bears with
PATIENT: dict[str, Any] = {"limits": {"hedges": 0}}  # no second server is asked: who is damaged is who reads


class PageCorruption(Scenario):
    """Each trial has a prompt of its own: answered once rightly, its page damaged, and answered again."""

    name = "page-corruption"
    title = "KV pages that go bad"
    hypothesis = (
        "a damaged KV page, resident, held by a running request or stored, is found before a token that was computed "
        "from it is given out, whatever became of it; and a server whose memory goes bad gets no new requests"
    )
    weight = 9
    why = "a wrong page makes wrong answers that nobody sees, and pages are shared by many requests"
    limit_s = 300.0

    def lacking(self) -> str:
        """The page store is opened here as well."""
        return "" if find_spec("lmdb") else "lmdb is missing: pip install 'holdfast[plugin]'"

    def steady(self) -> Observations:
        """A prompt is answered alike by computing it, from resident pages, and from the store, and nothing is found."""
        fleet = self.ground.fleet
        self.hands = [EngineHand(engine, fleet.secret) for engine in fleet.engines]
        self.gateway = self.ground.gateway(integrity={"drain": False}, **PATIENT)
        self.key, self.other_key = self.gateway.key("gameday"), self.gateway.key("another", org="another")
        self.store = StoreHand(fleet.store, populate=False)
        self.ground.cleanup.callback(self.store.close)
        self.prompts = iter(lambda: [self.ground.rng.randrange(*IDS) for _ in range(PROMPT_TOKENS)], [])
        bad = self._bad()
        prompt = next(self.prompts)
        first, resident = self._ask(prompt), self._ask(prompt)
        self._forget()
        loaded = self._loaded()
        stored = self._ask(prompt)
        return {
            "protected": [hand.status()["protected"] for hand in self.hands],
            "moved": [moved(first, one) for one in (resident, stored)],
            "loaded": self._loaded() - loaded,
            "found": self._bad() - bad,
        }

    def inject(self) -> Observations:
        """All damage is made here, and each damaged page is read at once: by the same prompt, asked again."""
        done = [*self._stored(), *self._put(), *self._resident(), *self._held()]
        return {"trials": done}

    def observe(self) -> Observations:
        """A second gateway watches while one server's pages go bad, and one more request is asked."""
        ground = self.ground
        integrity = {"corrupt_pages_max": BAD_MAX, "ask_every_s": 0.5}
        gateway = ground.gateway(integrity=integrity, **PATIENT)
        key = gateway.key("gameday")
        prompt = next(self.prompts)
        hand, blocks, right = self._seen(prompt, gateway, key)
        until(lambda: _page_totals(gateway, hand), WAIT_S_MAX, "what the plugin says of pages")
        for number in range(len(prompt) // BLOCK_TOKENS):
            hand.damage("zero", blocks[number], 0, number)
        again = self._ask(prompt, gateway, key, MIDDLE)
        drained = _waited(lambda: _replica(gateway, hand)["state"] == "drained")
        later = self._ask(prompt, gateway, key, MIDDLE)
        return {
            "drained": drained, "went_elsewhere": later.replica not in (None, hand.engine.address),
            "moved": [moved(right, one) for one in (again, later)], "faults": gateway.faults(),
        }  # fmt: skip

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [
            trials("a server says that its pages are protected", seen["protected"]),
            trials("an answer from kept pages is the computed one", [one <= MOVED_MAX for one in seen["moved"]]),
            Probe("pages come from the store", int(seen["loaded"] > 0), 1),
            Probe("nothing is found where nothing is damaged", int(seen["found"] == 0), 1, f"{seen['found']} pages"),
        ]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        done = [one for one in injected["trials"] if one["changed"]]
        if missed := {RESIDENT, HELD, STORED} - {one["where"] for one in done}:
            raise Missed(f"no page was damaged that was {' or '.join(sorted(missed))}")
        probes = []
        for where in (RESIDENT, HELD, STORED):
            mine = [one for one in done if one["where"] == where]
            said = [f"{one['kind']}{', ' + one['place'] if one['place'] else ''}" for one in mine]
            right = [one["moved"] <= MOVED_MAX for one in mine]
            probes.append(trials(f"a damaged page that is {where} is found", [one["found"] > 0 for one in mine], said))
            probes.append(trials(f"who reads one that is {where} is answered rightly", right, said))
        return [
            *probes,
            Probe("a server with too many bad pages is drained", int(seen["drained"]), 1),
            Probe("the next request goes elsewhere", int(seen["went_elsewhere"]), 1),
            trials("the answers are right all the while", [one <= MOVED_MAX for one in seen["moved"]]),
        ]

    # ---- one place after the other

    def _stored(self) -> list[dict[str, Any]]:
        done = []
        for kind in STORED_KINDS:
            route, seed = self.ground.rng.choice(ROUTES), self.ground.rng.randrange(1 << 30)
            prompt = next(self.prompts)
            right, keys = self._kept(prompt, self.key)
            number = self.ground.rng.randrange(len(keys))
            other = keys[(number + 1) % len(keys)]
            self.store.keep(other)
            self._forget()
            changed = self.store.damage(kind, route, keys[number], other, seed)
            done.append(self._read(STORED, f"{kind} by {route}", prompt, right) | {"changed": changed})
        return done

    def _put(self) -> list[dict[str, Any]]:
        """Valid pages, put where they do not belong through the store itself."""
        done = []
        for kind in PUT_KINDS:
            prompt = next(self.prompts)
            right, keys = self._kept(prompt, self.key)
            if kind == PUT_KINDS[0]:
                other = self._kept(next(self.prompts), self.key)[1][1]
            elif kind == PUT_KINDS[1]:
                other = keys[2]
            elif kind == PUT_KINDS[2]:
                self._forget()
                other = self._kept(prompt, self.other_key)[1][1]
            else:
                other = b"another model".ljust(32) + keys[1][32:]  # a key begins with its model's fingerprint
                self.store.put_under(other, keys[0])
            self._forget()
            changed = self.store.put_under(keys[1], other)
            done.append(self._read(STORED, f"{kind} page", prompt, right) | {"changed": changed})
        return done

    def _resident(self) -> list[dict[str, Any]]:
        done = []
        for kind in KINDS:
            prompt = next(self.prompts)
            hand, blocks, right = self._seen(prompt, self.gateway, self.key)
            full = len(prompt) // BLOCK_TOKENS
            number = self.ground.rng.randrange(full)
            before = self._bad()
            changed = hand.damage(kind, blocks[number], blocks[(number + 1) % full], self.ground.rng.randrange(1 << 30))
            done.append(self._read(RESIDENT, kind, prompt, right, before, MIDDLE) | {"changed": changed})
        return done

    def _held(self) -> list[dict[str, Any]]:
        return [self._while_it_runs(place, kind) for place in PLACES for kind in HELD_KINDS]

    def _while_it_runs(self, place: str, kind: str) -> dict[str, Any]:
        """Answered in full first, then again, with damage in mid-stream."""
        prompt, seed = next(self.prompts), self.ground.rng.randrange(1 << 30)
        right = self._ask(prompt, tokens=LONG)
        before = self._bad()
        done: dict[str, Any] = {}
        for _ in range(ROUNDS_MAX):
            streams = self.ground.clients.begin(
                self.gateway.url, [_body(prompt, LONG)], self.key, path=COMPLETIONS, seconds=WAIT_S_MAX
            )
            hand = self._serving(streams, HIT_AFTER[place])
            if hand is not None:
                done = hand.damage_held(prompt, place, kind, BLOCK_TOKENS, seed)
            (again,) = streams.wait()
            if done:
                break
        return {
            "where": HELD, "place": place, "kind": kind, "changed": done.get("changed", False),
            "moved": moved(right, again), "found": self._bad() - before,
        }  # fmt: skip

    # ---- leaves

    def _ask(
        self, prompt: list[int], gateway: Gateway | None = None, key: str | None = None, tokens: int = SHORT
    ) -> Answer:
        url = (gateway or self.gateway).url
        bodies = [_body(prompt, tokens)]
        (answer,) = self.ground.clients.ask(url, bodies, key or self.key, path=COMPLETIONS, seconds=WAIT_S_MAX)
        return answer

    def _read(
        self, where: str, kind: str, prompt: list[int], right: Answer, before: int | None = None, tokens: int = SHORT
    ) -> dict[str, Any]:
        """Ask again, and see. before: how many pages had been found."""
        before = self._bad() if before is None else before
        loaded = self._loaded()
        again = self._ask(prompt, tokens=tokens)
        for _ in range(ROUNDS_MAX - 1):
            if where != STORED or self._bad() > before or self._loaded() > loaded:
                break
            self._forget()  # it did not hear of the store in time, and computed: nothing was read
            again = self._ask(prompt, tokens=tokens)
        return {
            "where": where, "place": "", "kind": kind, "moved": moved(right, again), "found": self._bad() - before,
        }  # fmt: skip

    def _kept(self, prompt: list[int], key: str) -> tuple[Answer, list[bytes]]:
        """A prompt's answer, and the keys of its full pages in the store, in order."""
        full = len(prompt) // BLOCK_TOKENS
        before = self.store.manifests().keys()
        answer = self._ask(prompt, key=key)

        def new() -> list[bytes]:
            found = {name: one.position for name, one in self.store.manifests().items() if name not in before}
            return sorted(found, key=found.__getitem__) if len(found) >= full else []

        return answer, until(new, WAIT_S_MAX, "pages in the store")[:full]

    def _seen(self, prompt: list[int], gateway: Gateway, key: str) -> tuple[EngineHand, list[int], Answer]:
        """Who answers a prompt, in which blocks its pages are, and the answer. Raises AssertionError."""
        for _ in range(ROUNDS_MAX):
            streams = self.ground.clients.begin(
                gateway.url, [_body(prompt, MIDDLE)], key, path=COMPLETIONS, seconds=WAIT_S_MAX
            )
            hand = self._serving(streams, 1)
            held = hand.held(prompt) if hand is not None else {}
            (answer,) = streams.wait()
            if hand is not None and held.get("computed", 0) >= len(prompt):
                return hand, held["blocks"], answer
        raise AssertionError("a request was over each time before its blocks were seen")

    def _serving(self, streams: Streams, tokens: int) -> EngineHand | None:
        """Who serves a stream that has so many tokens now; None where it has ended."""
        until(lambda: streams.tokens >= tokens or streams.done, WAIT_S_MAX + 1, "tokens")
        if streams.done:
            return None
        return next(hand for hand in self.hands if hand.engine.address == streams.answers[0].replica)

    def _bad(self) -> int:
        """Pages that were found bad so far, by both servers."""
        return sum(hand.corrupt() for hand in self.hands)

    def _loaded(self) -> int:
        """Pages that came from the store so far, to both servers."""
        return sum(int(hand.status()["pages"]["loaded"]) for hand in self.hands)

    def _forget(self) -> None:
        """Once they are idle, both servers have no pages but those in the store."""
        for hand in self.hands:
            hand.forget()


def moved(right: Answer, again: Answer) -> float:
    """By how much any token's logarithm of probability differs; OTHER where a token does, or one lacks. Pure."""
    same = right.done and right.ids and (right.ids, right.finish, right.done) == (again.ids, again.finish, again.done)
    if not same or again.error is not None or len(right.logprobs) != len(again.logprobs):
        return OTHER
    return max((abs(a - b) for a, b in zip(right.logprobs, again.logprobs, strict=True)), default=OTHER)


def _body(prompt: Sequence[int], tokens: int) -> dict[str, Any]:
    return {
        "model": "tiny", "prompt": list(prompt), "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "logprobs": 1,
    }  # fmt: skip


def _replica(gateway: Gateway, hand: EngineHand) -> Mapping[str, Any]:
    """What the gateway says of a server."""
    told = json.loads(gateway.get("/admin/replicas", gateway.admin_url)[1])["replicas"]
    found: Mapping[str, Any] = next(one for one in told if one["replica"] == hand.engine.address)
    return found


def _page_totals(gateway: Gateway, hand: EngineHand) -> bool:
    """Whether the gateway has asked after its pages: only what goes bad after that counts."""
    return bool(_replica(gateway, hand)["pages"]["plugin"] == "told")


def _waited(look: Callable[[], bool]) -> bool:
    try:
        return until(look, WAIT_S_MAX)
    except AssertionError:
        return False
