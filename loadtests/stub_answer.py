"""One answer being given: what streamed and plain ones have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtests import stub_wire as wire
from loadtests.stub_choice import Choice
from loadtests.stub_engine import Engine, Task
from loadtests.stub_language import Language
from loadtests.stub_orders import Order
from loadtests.stub_pipe import Pipe
from loadtests.stub_request import Asked, error_body

USAGE_LIE = 3


@dataclass
class Work:
    """An answer as the server's books see it: who asked, what was read of the prompt and said so far, in tokens."""

    request_id: str
    answer_id: str
    created: int
    prompt_tokens: int = 0
    tokens: int = 0
    finished: bool = False


class Answer:
    """Says what was asked, and breaks where it was ordered to; `_begin` is how."""

    def __init__(
        self,
        asked: Asked,
        order: Order,
        language: Language,
        model: str,
        work: Work,
        pipe: Pipe,
        engine: Engine,
        done: Callable[[], None],
    ) -> None:
        """done: called when the answer has ended and the connection can carry another."""
        self.work = work
        self.pipe = pipe
        self._asked, self._order, self._engine, self._done = asked, order, engine, done
        self._model = model
        self._fingerprint = f"vllm-0.32.0-{language.seed & 0xFFFFFFFF:08x}"
        self._choices = [
            Choice(language, asked, prompt, index, order.tokens)
            for prompt in range(len(asked.prompts))
            for index in range(asked.choices)
        ]
        first = self._choices[0]
        self._fault = order.fault if order.fault is not None and order.fault.strikes(first.start) else None
        self._with_ids = not self._is("no_ids")
        self._vocab = language.vocab
        self._timer: Task | None = None
        self._over = False  # nothing more will be said, whether or not the connection stays

    def begin(self) -> None:
        """Start to answer."""
        if self._fault is not None and self._is("status"):
            status = self._fault.status
            self.pipe.write(wire.answer(status, error_body(status, "Ordered by the test", "InternalServerError")))
            self._end()
        else:
            self._begin()

    def abandon(self) -> None:
        """Stop: the peer has gone."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def drain(self) -> None:
        """End with an error: the server goes down, as vLLM does it."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.work.finished:
            self._fail()

    def resume(self) -> None:
        """Go on after the socket was full."""

    def _begin(self) -> None:
        raise NotImplementedError

    def _fail(self) -> None:
        raise NotImplementedError

    def _is(self, name: str) -> bool:
        return self._fault is not None and self._fault.name == name

    def _later(self, delay_s: float, act: Callable[[], object]) -> None:
        self._timer = self._engine.later(delay_s, act)

    def _read_prompts(self) -> None:
        self.work.prompt_tokens = sum(len(ids) for ids in self._asked.prompts)

    def _counted(self, choices: list[Choice]) -> dict[str, Any]:
        prompt = sum(len(ids) for ids in self._asked.prompts) if len(choices) > 1 else len(choices[0].prompt)
        factor = USAGE_LIE if self._is("wrong_usage") else 1
        emitted = sum(choice.emitted for choice in choices)
        return wire.usage(prompt * factor, emitted * factor, self._order.cached)

    def _end(self, data: bytes = b"") -> None:
        self._over = True
        self.work.finished = True
        if data:
            self.pipe.write(data)
        self.pipe.after(self._done)

    def _cut(self) -> bool:
        assert self._fault is not None
        self._over = True
        if self._fault.how == "fin":
            self.pipe.close()
        else:
            self.pipe.reset()
        return True
