"""One client: it asks, reads at its own pace, checks what it reads against the oracle, and may hang up."""

import asyncio
import json
import traceback
from typing import TYPE_CHECKING, Any

from gateway.books.ledger.contract import Place
from gateway.books.tenants import Tenant
from gateway.flow import Flow
from gateway.stream.call import Bounds, Call, Endpoint
from guards.budget import Limit, Line, Unit
from guards.claim import Load
from guards.refusal import Refused
from guards.scope import scope
from loadtests.stub_request import chat_ids
from loadtests.stub_tokenizer import encode
from tests.gateway.stream.fakes import FakeSink, Seen
from tests.gateway.stream.vllm_text import VOCAB
from tests.sim.oracle import Oracle, Said, answer
from tests.sim.plan import Asking

if TYPE_CHECKING:
    from tests.sim.world import World

Accounts = dict[Place, int]  # so much of each
STALL_S = 30.0  # as ClientSink's: a client that reads nothing for so long is hung up on


class Client(FakeSink):
    """The client's end of one request.

    expected: for each choice all of its prompt's answers; that of the choice itself first. One that had not begun
        when its server was lost may get any of them: the engine draws.
    held, charged: of its accounts, as committed; None where there is no hold, or none yet.
    settled: tokens it is charged.
    """

    def __init__(self, world: "World", number: int, plan: Asking) -> None:
        super().__init__()
        self.world, self.plan, self.name = world, plan, f"r{number}"
        self.call, self.oracle = _asked(plan, number)
        self.tenant = world.tenants[plan.account]
        self.expected = self._answers(self.call.body)
        self._unstopped = self._answers({name: value for name, value in self.call.body.items() if name != "stop"})
        self.seen = Seen()
        self.rest = b""
        self.got = Load(0, 0)  # delivered: ids, and the tokens of the prompts that they answer
        self.read_s: list[float] = []  # when it was given something
        self.record: Any = None
        self.held: Accounts | None = None
        self.charged: Accounts | None = None
        self.settled: int | None = None
        self.ended_s: float | None = None
        self.outcome = ""
        self.body: bytes | None = None
        self.turned_away = False  # it came when the gateway was stopping
        self.recovered = False  # charged by a gateway that was started anew
        self.dead = False  # the gateway's process died under it
        self.task: asyncio.Task[None] | None = None

    # -- its life

    def arrive(self, flow: Flow) -> None:
        """Ask."""
        self.received_at = self.world.loop.time()
        self.task = self.world.loop.create_task(self._ask(flow))
        if self.plan.leave_s is not None:
            self.world.loop.later(self.plan.leave_s, self.leave)

    def leave(self) -> None:
        """Hang up."""
        if self.task is not None and not self.task.done() and not self.gone:
            self.world.note(f"{self.name} leaves")
            self.gone = True
            self.task.cancel()

    async def _ask(self, flow: Flow) -> None:
        try:
            self.body = await flow.serve(self.call, self.tenant, self)
            self.outcome = "served"
        except Refused as refused:
            self.outcome = f"refused: {refused.reason}"
        except asyncio.CancelledError:
            self.outcome = "cancelled"
        except Exception as error:
            self.world.broken(f"{self.name}: {error!r} at {''.join(traceback.format_tb(error.__traceback__)[-2:])}")
        finally:
            if not self.dead:
                self.ended_s = self.world.loop.time()
                self.world.ended(self)

    # -- Sink

    def write(self, data: bytes) -> bool:
        if self.dead:
            return True
        self.started = True  # also when it has just left: what is on its way to it is delivered
        self.writes += 1
        self.read_s.append(self.world.loop.time())
        self.world.note(f"{self.name} reads {len(data)} bytes")
        *raws, self.rest = (self.rest + data).split(b"\n\n")
        try:
            for raw in raws:
                self._take(raw)
            self._compare()
            self.got = Load(self.prompt_least, self.ids)
        except AssertionError as wrong:
            self.world.broken(f"{self.name}: {wrong}")
        if self.writes == self.plan.leave_after:
            self.world.loop.later(0.0, self.leave)
        return self.writes not in self.plan.full

    def on_room(self, then: Any) -> None:
        super().on_room(then)
        wait_s = self.plan.full[self.writes]
        self.world.loop.later(min(wait_s, STALL_S), self.catch_up if wait_s < STALL_S else self.leave)

    # -- what it has got

    @property
    def ids(self) -> int:
        """Tokens that it was given of the answers."""
        return sum(map(len, self.seen.ids.values()))

    @property
    def prompt_least(self) -> int:
        """Tokens of those prompts whose answers have begun."""
        prompts = self.oracle.prompts
        return sum(len(prompts[p]) for p in {i // self.call.n for i, ids in self.seen.ids.items() if ids})

    @property
    def prompt_most(self) -> int:
        """Tokens of all its prompts."""
        return sum(map(len, self.oracle.prompts))

    def _take(self, raw: bytes) -> None:
        assert not self.seen.done, "something came after [DONE]"
        assert self.seen.error is None, "something came after an error"
        if raw == b"data: [DONE]":
            self.seen.done = True
        else:
            self.seen.take(json.loads(raw.removeprefix(b"data: ")))

    def _compare(self) -> None:
        """Ids and text are a beginning of what an uninterrupted server says."""
        for index, text in self.seen.text.items():
            ids = self.seen.ids.get(index, [])
            # One whose length ended it has all of its text, also what could have begun a stop string.
            answers = self._unstopped if self.seen.finish.get(index) == "length" else self.expected
            if not any(_begins(one, ids, text) for one in answers[index]):
                told = f"{text!r} {ids} {self.seen.finish.get(index)}"
                raise AssertionError(f"choice {index} is not what the oracle says: {told}, should be {answers[index]}")

    def _answers(self, body: dict[str, Any]) -> list[list[Said]]:
        whole, n = self.oracle.whole(dict(body), self.plan.chat), self.call.n
        return [[one, *whole[i // n * n : i // n * n + n]] for i, one in enumerate(whole)]

    def complete(self, choices: dict[int, Said]) -> bool:
        """Whether these are whole answers, as far as it can see."""
        seen = self.call.wants_ids
        return all(
            any(choices[index] == (one if seen else one._replace(ids=[])) for one in answers)
            for index, answers in enumerate(self.expected)
        )


def _begins(said: Said, ids: list[int], text: str) -> bool:
    return said.ids[: len(ids)] == ids and said.text.startswith(text)


def _asked(plan: Asking, number: int) -> tuple[Call, Oracle]:
    """The request of a client, and the oracle of its answers."""
    body = {"model": "tiny", "user": f"r{number}", **plan.said}
    if plan.chat:
        body["messages"] = [{"role": "user", "content": f"{number}"}]
        prompts = [chat_ids(body["messages"], VOCAB)]
    else:
        said = body["prompt"]
        many = said if isinstance(said, list) and isinstance(said[0], str) else [said]
        prompts = [encode(one, VOCAB) if isinstance(one, str) else one for one in many]
    n = body.get("n", 1)
    answers = [answer(prompt, number * 16 + i, plan.tokens) for prompt in prompts for i in range(n)]
    oracle = Oracle(answers, prompts)
    if plan.stops:
        text = oracle.whole(dict(body) | {"max_tokens": 64}, plan.chat)[0].text
        middle = len(text) // 2
        body["stop"] = [text[middle : middle + 3] or "zz", "qqq"]
    endpoint = Endpoint.CHAT if plan.chat else Endpoint.COMPLETIONS
    raw = json.dumps(body).encode()
    return Call(endpoint, raw, f"r{number}", Bounds()), oracle


def tenant(account: int, budget: int | None, shared: dict[Unit, int]) -> Tenant:
    """Who pays: a key, and the org it shares with the others."""
    key_id = f"key-{account}"
    lines = [Line("org:all", Limit(amount, unit=unit)) for unit, amount in shared.items()]
    if budget is not None:
        lines.append(Line(scope("key", key_id), Limit(budget)))
    return Tenant(key_id, f"user-{account}", lines=tuple(lines))


def key_place(client: Client) -> Place:
    """The account of a client's key, which always counts tokens."""
    assert client.held is not None
    return next(at for at in client.held if at.scope.startswith("key:"))
