"""What clients do, turn by turn. Decisions only: a script is given answers, and says what is asked next.

def script(rng, sizes): answers = yield [Ask(...), ...]     asked at once; the answers come in the same order

The same rng gives the same session, but for the words of the answers, which are part of what is asked next.
"""

import json
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loadtests.traffic.text import words

Message = dict[str, Any]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. body: without model and stream. after_s: waited before it is asked.

    leave_after: tokens after which its client hangs up; leave_s: or seconds after which it does, token or not.
    may_stop: a budget is expected to refuse or end it. headers: beside the key's.
    """

    body: dict[str, Any]
    path: str = CHAT
    after_s: float = 0.0
    leave_after: int | None = None
    leave_s: float | None = None
    may_stop: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. good: the session may go on."""

    good: bool
    text: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is. In tokens, but think_s, seconds: of prompts' and answers' usual lengths, `scale` times.

    words: that make a token of this model's, on average.
    context: a model's window; exact: ask for answers of just that length (`ignore_eos`, of vLLM).
    tool_calls: agents' tools in OpenAI's fields, which not every chat template knows; else as users' messages.
    """

    scale: float = 1.0
    context: int = 4096
    think_s: float = 2.0
    words: float = 1.0
    exact: bool = True
    tool_calls: bool = False

    def of(self, tokens: float) -> int:
        """A usual length, scaled; never none."""
        return max(1, round(tokens * self.scale))

    def text(self, name: str, tokens: float) -> str:
        """Text of a usual length, scaled."""
        return words(name, max(1, round(self.of(tokens) * self.words)))

    def filling(self, name: str, tokens: float) -> str:
        """Text of just so many tokens, whatever the scale."""
        return words(name, max(1, round(tokens * self.words)))

    def answer(self, tokens: float) -> dict[str, Any]:
        """The fields that say how long an answer is."""
        length = self.of(tokens)
        return {"max_tokens": length, "ignore_eos": True} if self.exact else {"max_tokens": length}


Script = Generator[list[Ask], list[Answer], None]
SYSTEMS = 4  # system prompts that all chats share
TURNS_MAX = 40  # of one session
NAMES = 1 << 40  # of sessions


def chat(rng: random.Random, sizes: Sizes) -> Script:
    """A conversation of two to six turns: a system prompt that others share, all that was said, a question."""
    name = rng.randrange(NAMES)
    messages: list[Message] = [{"role": "system", "content": sizes.text(f"system/{rng.randrange(SYSTEMS)}", 200)}]
    headers = {"x-session-id": f"chat-{name}"}
    for turn in range(rng.randint(2, 6)):
        question = sizes.text(f"chat/{name}/{turn}", rng.lognormvariate(3.2, 0.6))
        messages.append({"role": "user", "content": question})
        after_s = rng.expovariate(1 / sizes.think_s) if turn and sizes.think_s else 0.0
        body = {"messages": list(messages), **sizes.answer(min(400.0, rng.lognormvariate(4.2, 0.6)))}
        (answer,) = yield [Ask(body, after_s=after_s, headers=headers)]
        if not answer.good:
            return
        messages.append({"role": "assistant", "content": answer.text})


def agent(rng: random.Random, sizes: Sizes) -> Script:
    """A loop with tools: long results, short answers, the next step at once. Three to ten steps."""
    name = rng.randrange(NAMES)
    headers = {"x-session-id": f"agent-{name}", "x-agent-id": f"worker-{name % 8}"}
    messages: list[Message] = [
        {"role": "system", "content": sizes.text("agent/system", 400)},
        {"role": "user", "content": sizes.text(f"agent/{name}/task", 80)},
    ]
    more: dict[str, Any] = {"tools": [TOOL]} if sizes.tool_calls else {}
    for step in range(rng.randint(3, 10)):
        after_s = rng.uniform(0.02, 0.2) if step else 0.0
        body = {"messages": list(messages), **more, **sizes.answer(rng.randint(15, 60))}
        (answer,) = yield [Ask(body, after_s=after_s, headers=headers)]
        if not answer.good:
            return
        messages += _tool(answer.text, step, sizes.text(f"agent/{name}/{step}", rng.randint(60, 300)), sizes)


TOOL = {"type": "function", "function": {
    "name": "search", "description": "Search the documents.",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
}}  # fmt: skip


def _tool(text: str, step: int, result: str, sizes: Sizes) -> list[Message]:
    """What was answered, and what the tool found. Models that call nothing are taken to have called all the same."""
    if not sizes.tool_calls:
        return [{"role": "assistant", "content": text}, {"role": "user", "content": f"Result of search:{result}"}]
    call = {"name": "search", "arguments": json.dumps({"query": text[:80]})}
    name = f"call_{step}"
    return [
        {"role": "assistant", "content": text, "tool_calls": [{"id": name, "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": name, "content": result},
    ]


def batch(rng: random.Random, sizes: Sizes) -> Script:
    """A flood: sixteen to forty-eight documents at once, as jobs are that run at night in the middle of the day."""
    name, instruction = rng.randrange(NAMES), sizes.text("batch/instruction", 120)
    asks = []
    for number in range(rng.randint(16, 48)):
        text = instruction + sizes.text(f"batch/{name}/{number}", rng.randint(100, 500))
        asks.append(Ask({"prompt": text, **sizes.answer(rng.randint(40, 160))}, COMPLETIONS))
    yield asks


def runaway(rng: random.Random, sizes: Sizes) -> Script:
    """A loop that has lost its end: the same task again and again, each answer as long as the model lets it be."""
    name = rng.randrange(NAMES)
    headers = {"x-session-id": f"runaway-{name}", "x-agent-id": f"runaway-{name % 8}"}
    task = sizes.text(f"runaway/{name}", 60)
    for turn in range(TURNS_MAX):
        room = max(1, (sizes.context - 2 * sizes.of(60)) * 3 // 4)
        body: dict[str, Any] = {"messages": [{"role": "user", "content": task}], "max_tokens": room}
        body |= {"ignore_eos": True} if sizes.exact else {}
        (answer,) = yield [Ask(body, after_s=0.05 if turn else 0.0, headers=headers, may_stop=True)]
        if not answer.good:
            return


def leaver(rng: random.Random, sizes: Sizes) -> Script:
    """A client that hangs up: half of them in the middle of the answer, half after a moment, often before it begins."""
    name, tokens = rng.randrange(NAMES), rng.randint(100, 300)
    body = {"messages": [{"role": "user", "content": sizes.text(f"leaver/{name}", rng.randint(50, 400))}]}
    ask = Ask(body | sizes.answer(tokens))
    if rng.random() < 0.5:
        yield [replace(ask, leave_after=max(1, rng.randrange(sizes.of(tokens))))]
    else:
        yield [replace(ask, leave_s=rng.expovariate(1 / 0.3))]


def long(rng: random.Random, sizes: Sizes) -> Script:
    """A long document, half to nine tenths of the model's window, and one or two short questions on it."""
    name = rng.randrange(NAMES)
    document = sizes.filling(f"long/{name}", sizes.context * rng.uniform(0.5, 0.85))
    messages: list[Message] = [{"role": "user", "content": document}]
    room = sizes.context // 40
    for turn in range(rng.randint(1, 2)):
        length = min(sizes.answer(rng.randint(20, 80))["max_tokens"], max(1, room))
        body = {"messages": list(messages), **sizes.answer(0), "max_tokens": length}
        after_s = rng.expovariate(1 / sizes.think_s) if turn and sizes.think_s else 0.0
        (answer,) = yield [Ask(body, after_s=after_s, headers={"x-session-id": f"long-{name}"})]
        if not answer.good:
            return
        question = sizes.filling(f"long/{name}/{turn}", min(sizes.of(20), room))
        messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": question}]


SCENARIOS: dict[str, Callable[[random.Random, Sizes], Script]] = {
    "chat": chat, "agents": agent, "batch": batch, "runaway": runaway, "leavers": leaver, "long": long,
}  # fmt: skip
# Mixed tenants: what comes for each, and what it does, as shares of all.
MIXED: tuple[tuple[str, str, float], ...] = (
    ("alice", "chat", 0.45), ("bob", "agents", 0.2), ("carol", "long", 0.1), ("dave", "leavers", 0.15),
    ("erin", "batch", 0.04), ("mallory", "runaway", 0.06),
)  # fmt: skip
TENANTS, REPLAY = "tenants", "replay"
NAMED = (*SCENARIOS, TENANTS, REPLAY)


def drawn(rng: random.Random, mixed: Sequence[tuple[str, str, float]] = MIXED) -> tuple[str, str]:
    """Whose turn it is, and what they do, in mixed traffic."""
    ((tenant, scenario, _),) = rng.choices(mixed, [share for _, _, share in mixed])
    return tenant, scenario
