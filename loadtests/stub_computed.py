"""Answers that are computed by an engine with limits: said as their tokens come, not by the clock."""

from functools import partial
from typing import Any

from loadtests import stub_wire as wire
from loadtests.batching import Stream
from loadtests.stub_answer import Answer
from loadtests.stub_choice import Choice
from loadtests.stub_computer import Computer
from loadtests.stub_plain import PlainAnswer
from loadtests.stub_stream import StreamedAnswer


class Computed(Answer):
    """What both kinds have in common: a stream in the engine for each choice, for as long as the answer lasts.

    An order's pace means nothing here; its tokens do, and those of its prompt that are cached.
    """

    def __init__(self, computer: Computer, *given: Any) -> None:
        super().__init__(*given)
        self._computer = computer
        self._streams: list[Stream] = []
        self._computed = [0] * len(self._choices)
        self._totals = [0] * len(self._choices)

    def abandon(self) -> None:
        self._leave()
        super().abandon()

    def _enter(self) -> None:
        """Have all choices computed."""
        self._totals = [choice.total() for choice in self._choices]
        for number, (choice, total) in enumerate(zip(self._choices, self._totals, strict=True)):
            hear = partial(self._hear, number)
            self._streams.append(self._computer.enter(len(choice.prompt), total, self._order.cached, hear))

    def _leave(self) -> None:
        for stream in self._streams:
            self._computer.leave(stream)

    def _hear(self, number: int, tokens: int) -> None:
        self._computed[number] += tokens
        if not self.work.prompt_tokens:
            self._read_prompts()
        if not self._over:
            self._heard()

    def _heard(self) -> None:
        """Go on, with tokens more."""
        raise NotImplementedError

    def _end(self, data: bytes = b"") -> None:
        self._leave()
        super()._end(data)


class ComputedStream(Computed, StreamedAnswer):
    """An event stream of what is computed."""

    def resume(self) -> None:
        if any(self._computed):
            super().resume()

    def _begin(self) -> None:
        self.pipe.write(wire.HEAD_STREAM)
        self._over = self._is("silence")
        if not self._over:
            self._enter()

    def _heard(self) -> None:
        if not self._spoken:
            self._first()
        elif self._timer is None:
            self._turn()

    def _ready(self) -> bool:
        return any(self._sayable(choice, self._order.per_chunk) for choice in self._live)

    def _sayable(self, choice: Choice, tokens: int) -> int:
        """As many as are computed, in events of `per_chunk`; the first one at once, and the last ones."""
        computed = self._computed[choice.index]
        left = computed - choice.emitted
        whole = left >= self._order.per_chunk or not choice.begun or computed == self._totals[choice.index]
        return min(tokens, left) if whole else 0

    def _due(self) -> bool:
        return super()._due() and (not self._live or self._ready())


class ComputedPlain(Computed, PlainAnswer):
    """An answer in one piece, when all of it is computed."""

    def _begin(self) -> None:
        if not self._is("silence"):
            self._enter()

    def _heard(self) -> None:
        if self._computed == self._totals:
            self._plain([self._said_all(choice) for choice in self._choices])
