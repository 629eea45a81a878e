"""KV pages that go bad in the servers' memory and in their page store, in every way the plugin tells apart."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

from loadtests.answers import Answer
from loadtests.gameday.engine_hand import EngineHand
from loadtests.gameday.fleet import BLOCK_TOKENS
from loadtests.gameday.page_hand import PLACES
from loadtests.gameday.scenario import Missed, Observations, Probe, Scenario, clean, trials, unless_missed
from loadtests.gameday.store_hand import ROUTES, StoreHand
from loadtests.gameday.streams import Streams
from loadtests.gateway_process import Gateway, NotSeen, until

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
SPARED = ("truncate",)  # what is lost may be zeros, and pages of some stores cannot be shorter
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
    limit_s = 600.0

    def lacking(self) -> str:
        """The page store is opened here as well."""
        return "" if find_spec("lmdb") else "lmdb is missing; in Holdfast's directory: pip install '.[plugin]'"

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
        (first, _), loaded = self._kept(prompt, self.key), self._loaded()
        again = [self._ask(prompt)]
        while len(again) <= ROUNDS_MAX and self._loaded() == loaded:  # it may not hear of the store in time
            self._forget()
            again.append(self._ask(prompt))
        return {
            "protected": [hand.status()["protected"] for hand in self.hands],
            "moved": [moved(first, one) for one in again],
            "loaded": self._loaded() - loaded,
            "found": self._bad() - bad,
        }

    def inject(self) -> Observations:
        """All damage is made here, and each damaged page is read at once: by the same prompt, asked again."""
        self.ground.damaged = True  # a server that does not outlive its bad page must not pass for a bad try
        done = [*self._stored(), *self._put(), *self._resident(), *self._held()]
        return {"trials": done}

    def observe(self) -> Observations:
        """A second gateway watches while one server's pages go bad, and one more request is asked."""
        ground = self.ground
        integrity = {"corrupt_pages_max": BAD_MAX, "ask_every_s": 0.5}
        gateway = ground.gateway(integrity=integrity, **PATIENT)
        key = gateway.key("gameday")
        prompt = next(self.prompts)
        try:
            hand, blocks, right = self._seen(prompt, gateway, key)
        except Missed as missed:  # what was seen before is judged all the same
            return {"missed": str(missed)}
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
        tried = injected["trials"]
        probes = [probe for where in (RESIDENT, HELD, STORED) for probe in _of(where, tried)]
        if why := seen.get("missed"):
            drained = []
        else:
            drained = [
                Probe("a server with too many bad pages is drained", int(seen["drained"]), 1),
                Probe("the next request goes elsewhere", int(seen["went_elsewhere"]), 1),
                trials("the answers are right all the while", [one <= MOVED_MAX for one in seen["moved"]]),
                clean(seen["faults"]),
            ]
        if lacking := missing(tried):
            spared = sum(not one["changed"] for one in tried)
            why = f"{spared} of {len(tried)} pages were not damaged; so not tried is {lacking}"
        return unless_missed(why or "", [*probes, *drained])

    # ---- one place after the other

    def _stored(self) -> list[dict[str, Any]]:
        done = []
        for kind in STORED_KINDS:
            route = self.ground.rng.choice(ROUTES)
            done.append(self._unless_missed(STORED, kind, route, partial(self._spoil, kind, route)))
        return done

    def _spoil(self, kind: str, route: str) -> dict[str, Any]:
        prompt, seed = next(self.prompts), self.ground.rng.randrange(1 << 30)
        right, keys = self._kept(prompt, self.key)
        number = self.ground.rng.randrange(len(keys))
        other = keys[(number + 1) % len(keys)]
        self.store.keep(other)
        self._forget()
        changed = self.store.damage(kind, route, keys[number], other, seed)
        return self._read(STORED, prompt, right) | {"changed": changed}

    def _put(self) -> list[dict[str, Any]]:
        """Valid pages, put where they do not belong through the store itself."""
        return [self._unless_missed(STORED, kind, "", partial(self._misplace, kind)) for kind in PUT_KINDS]

    def _misplace(self, kind: str) -> dict[str, Any]:
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
        return self._read(STORED, prompt, right) | {"changed": changed}

    def _resident(self) -> list[dict[str, Any]]:
        return [self._unless_missed(RESIDENT, kind, "", partial(self._touch, kind)) for kind in KINDS]

    def _touch(self, kind: str) -> dict[str, Any]:
        prompt = next(self.prompts)
        hand, blocks, right = self._seen(prompt, self.gateway, self.key)
        full = len(prompt) // BLOCK_TOKENS
        number = self.ground.rng.randrange(full)
        before = hand.corrupt()
        changed = hand.damage(kind, blocks[number], blocks[(number + 1) % full], self.ground.rng.randrange(1 << 30))
        return self._read(RESIDENT, prompt, right, before, MIDDLE, hand) | {"changed": changed}

    def _held(self) -> list[dict[str, Any]]:
        return [
            self._unless_missed(HELD, kind, place, partial(self._while_it_runs, place, kind))
            for place in PLACES for kind in HELD_KINDS
        ]  # fmt: skip

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
        else:
            raise Missed("it was over each time before its page was reached")
        return {"changed": done["changed"], "moved": moved(right, again), "found": self._bad() - before}

    # ---- leaves

    @staticmethod
    def _unless_missed(where: str, kind: str, place: str, trial: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a trial saw; or why no page was damaged in it, so that the others are made all the same."""
        about = {"where": where, "kind": kind, "place": place}
        try:
            told = trial()
        except Missed as missed:
            return about | {"changed": False, "why": str(missed)}
        return about | told | ({} if told["changed"] else {"why": "the page stayed as it was"})

    def _ask(
        self, prompt: list[int], gateway: Gateway | None = None, key: str | None = None, tokens: int = SHORT
    ) -> Answer:
        url = (gateway or self.gateway).url
        bodies = [_body(prompt, tokens)]
        (answer,) = self.ground.clients.ask(url, bodies, key or self.key, path=COMPLETIONS, seconds=WAIT_S_MAX)
        return answer

    def _read(
        self, where: str, prompt: list[int], right: Answer, before: int | None = None, tokens: int = SHORT,
        hand: EngineHand | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Ask again, and see. before: how many pages had been found, by a server, or without one by both."""
        bad = self._bad if hand is None else hand.corrupt
        before = bad() if before is None else before
        loaded = self._loaded()
        again = self._ask(prompt, tokens=tokens)
        for _ in range(ROUNDS_MAX - 1):
            if where != STORED or bad() > before or self._loaded() > loaded:
                break
            self._forget()  # it did not hear of the store in time, and computed: nothing was read
            again = self._ask(prompt, tokens=tokens)
        return {"moved": moved(right, again), "found": bad() - before}

    def _kept(self, prompt: list[int], key: str) -> tuple[Answer, list[bytes]]:
        """A prompt's answer, and the keys of its full pages in the store, in order. Raises Missed."""
        full = len(prompt) // BLOCK_TOKENS
        before = self.store.manifests().keys()
        answer = self._ask(prompt, key=key)

        def new() -> list[bytes]:
            found = {name: one.position for name, one in self.store.manifests().items() if name not in before}
            return sorted(found, key=found.__getitem__) if len(found) >= full else []

        try:
            return answer, until(new, WAIT_S_MAX, "pages in the store")[:full]
        except NotSeen as late:
            raise Missed(str(late)) from None

    def _seen(self, prompt: list[int], gateway: Gateway, key: str) -> tuple[EngineHand, list[int], Answer]:
        """Who answers a prompt, in which blocks its pages are, and the answer. Raises Missed."""
        for _ in range(ROUNDS_MAX):
            streams = self.ground.clients.begin(
                gateway.url, [_body(prompt, MIDDLE)], key, path=COMPLETIONS, seconds=WAIT_S_MAX
            )
            hand = self._serving(streams, 1)
            held = hand.held(prompt) if hand is not None else {}
            (answer,) = streams.wait()
            if hand is not None and held.get("computed", 0) >= len(prompt):
                return hand, held["blocks"], answer
        raise Missed("a request was over each time before its blocks were seen")

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


def missing(tried: Sequence[Mapping[str, Any]]) -> str:
    """What of the damage that the hypothesis speaks of was not made in any trial, and why; empty where all was. Pure.

    Each kind, but for those in SPARED, of pages that are resident, stored or held; each place of a running request.
    """
    wanted = [(RESIDENT, "kind", kind) for kind in KINDS]
    wanted += [(STORED, "kind", kind) for kind in (*STORED_KINDS, *PUT_KINDS)]
    wanted += [(HELD, "kind", kind) for kind in HELD_KINDS] + [(HELD, "place", place) for place in PLACES]
    lacking = []
    for where, by, what in wanted:
        mine = [one for one in tried if one["where"] == where and one[by] == what]
        if what not in SPARED and not any(one["changed"] for one in mine):
            why = sorted({one["why"] for one in mine}) or ["never tried"]
            lacking.append(f"{what}, {where} ({'; '.join(why)})")
    return ", ".join(lacking)


def _of(where: str, tried: Sequence[Mapping[str, Any]]) -> list[Probe]:
    """What became of the pages that were damaged there, and which were not."""
    mine = [one for one in tried if one["where"] == where and one["changed"]]
    spared = [_called(one) for one in tried if one["where"] == where and not one["changed"]]
    said = [_called(one) for one in mine]
    found = trials(f"a damaged page that is {where} is found", [one["found"] > 0 for one in mine], said)
    told = [found.seen] * bool(found.seen) + [f"not damaged: {', '.join(spared)}"] * bool(spared)
    right = [one["moved"] <= MOVED_MAX for one in mine]
    return [
        replace(found, seen="; ".join(told)),
        trials(f"who reads one that is {where} is answered rightly", right, said),
    ]


def _called(trial: Mapping[str, Any]) -> str:
    return f"{trial['kind']}{', ' + trial['place'] if trial['place'] else ''}"


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
