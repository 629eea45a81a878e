"""Not one byte more can be written where the gateway keeps its books, in the middle of its streams."""

import json
import resource
from collections.abc import Sequence

from loadtests.answers import Answer
from loadtests.gameday.faults.cut import BEGUN_S_MAX
from loadtests.gameday.ground import booked, charged, chat, equal
from loadtests.gameday.scenario import Observations, Probe, Scenario, clean, trials, unless_missed
from loadtests.gateway_process import Gateway, until

STREAMS, TOKENS = 8, 120
NEW = 8  # requests that come while the disk is full
NOTICED_TRIES = 100
LET_IN_MAX = 4  # of them: what its first failed write comes too late for
READY_S_MAX = 30.0
WHY = ("the journal cannot be written", "the ledger cannot be written")


class DiskFull(Scenario):
    """By a limit on the size of the gateway's files (RLIMIT_FSIZE): it needs no root, and no disk to be filled."""

    name = "disk-full"
    title = "the disk of the books is full"
    hypothesis = (
        "streams that run come to their ends, new requests are refused by name, and once there is room all is well "
        "without a restart, everything charged exactly once"
    )  # fmt: skip
    weight = 6
    why = "disks fill up unwatched; what cannot be written down must not be given away"
    limit_s = 300.0

    def steady(self) -> Observations:
        """Answers directly and through the gateway, whose books can be written."""
        ground = self.ground
        self.bodies = [
            chat(f"List {n} facts.", max_tokens=TOKENS, ignore_eos=True, repetition_penalty=1.1 + n / 20)
            for n in range(STREAMS)
        ]
        self.wanted = ground.clients.ask(ground.fleet.urls[1], self.bodies)
        self.gateway: Gateway = ground.gateway()
        self.key = self.gateway.key("gameday", 1_000_000)
        before = ground.clients.ask(self.gateway.url, self.bodies[:2], self.key)
        return {
            "equal": equal(self.wanted[:2], before),
            "charged_once": charged(self.gateway, before),
            "ready": ready(self.gateway) == [],
        }

    def inject(self) -> Observations:
        """Begin the streams; then no file of the gateway's may grow."""
        ground = self.ground
        self.streams = ground.clients.begin(self.gateway.url, self.bodies, self.key)
        after = ground.rng.randrange(STREAMS * TOKENS // 16, STREAMS * TOKENS // 4)
        until(lambda: self.streams.tokens >= after or self.streams.done, BEGUN_S_MAX, f"{after} tokens")
        running = sum(not answer.done for answer in self.streams.answers)
        limit_files(self.gateway, 1)
        return {"tokens_before": self.streams.tokens, "running": running}

    def observe(self) -> Observations:
        """New requests, until it has noticed and then some more; then room again, and the same as before."""
        ground, gateway = self.ground, self.gateway
        body = chat("Is there room?", max_tokens=4) | {"stream": False}
        let_in: list[Answer] = []
        try:
            for _ in range(NOTICED_TRIES):
                (answer,) = ground.clients.ask(gateway.url, [body], self.key)
                if answer.status != 200:
                    break
                let_in.append(answer)
            refused = ground.clients.ask(gateway.url, [body] * NEW, self.key)
            why = ready(gateway)
            got = self.streams.wait()
        finally:
            limit_files(gateway, resource.RLIM_INFINITY)
        until(lambda: ready(gateway) == [], READY_S_MAX, "the gateway to be ready again")
        after = ground.clients.ask(gateway.url, self.bodies, self.key)
        return {
            "equal": equal(self.wanted, got),
            "errors": [str((answer.error or {}).get("code", "")) for answer in got],
            "charged_once": charged(gateway, [*let_in, *got]),
            "let_in": len(let_in),
            "refused": [[answer.status, str((answer.error or {}).get("code", ""))] for answer in refused],
            "said_why": why,
            "equal_after": equal(self.wanted, after),
            "charged_once_after": charged(gateway, after),
            "ledger_is_journal": booked(gateway, self.key),
            "log_faults": gateway.faults(),
        }

    @staticmethod
    def judge_steady(seen: Observations) -> Sequence[Probe]:
        return [
            trials("a stream through the gateway is equal", seen["equal"]),
            trials("a stream is charged exactly once", seen["charged_once"]),
            trials("the gateway is ready", [seen["ready"]]),
        ]

    @staticmethod
    def judge(injected: Observations, seen: Observations) -> Sequence[Probe]:
        missed = "" if injected["running"] else "no stream was running when the disk was full"
        named = [said == [503, "books_unavailable"] for said in seen["refused"]]
        return unless_missed(missed, [
            trials("a running stream equals its uninterrupted run", seen["equal"], seen["errors"]),
            trials("it is charged exactly once, as all that was let in", seen["charged_once"]),
            trials("a new request is refused by name (503, books_unavailable)", named, seen["refused"]),
            Probe(f"at most {LET_IN_MAX} are let in before it notices", int(seen["let_in"] <= LET_IN_MAX), 1,
                  f"{seen['let_in']} were"),
            Probe("it says why it is not ready", int(any(why in WHY for why in seen["said_why"])), 1,
                  str(seen["said_why"])),
            trials("a stream after it equals its uninterrupted run", seen["equal_after"]),
            trials("a stream after it is charged exactly once", seen["charged_once_after"]),
            Probe("the ledger has charged what the journal says", int(seen["ledger_is_journal"]), 1),
            clean(seen["log_faults"]),
        ])  # fmt: skip


def limit_files(gateway: Gateway, size_bytes: int) -> None:
    """No file of the gateway's grows, or is written to, beyond so many bytes; its log neither."""
    resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def ready(gateway: Gateway) -> list[str]:
    """Why it says that it is not ready; nothing where it is."""
    status, said = gateway.get("/readyz")
    return [] if status == 200 else list(json.loads(said)["why"]) if said else ["it does not answer"]
