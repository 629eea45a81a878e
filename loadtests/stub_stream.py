"""An answer as an event stream: paced, in engine steps of one event per choice, broken as ordered."""

from collections.abc import Callable
from typing import Any

from loadtests import stub_wire as wire
from loadtests.stub_answer import Answer
from loadtests.stub_choice import Choice

STEPS_PER_TURN = 16  # then the other streams have theirs
COMMENT_EVERY_S = 0.05


class StreamedAnswer(Answer):
    """Says tokens as they are due, as long as the socket takes them."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        work = self.work
        self._wire = wire.Wire(self._asked.chat, work.answer_id, work.created, self._model, self._fingerprint)
        self._live = list(self._choices)
        self._begun_s = self._engine.time() + self._order.ttft_s
        self._out: list[bytes] = []
        self._spoken = False

    def resume(self) -> None:
        if self._timer is None and not self._over:
            self._later(0.0, self._turn)

    def _begin(self) -> None:
        self.pipe.write(wire.HEAD_STREAM)
        self._over = self._is("silence")
        if not self._over:
            self._later(0.0 if self._asked.again is not None else self._order.ttft_s, self._first)

    def _first(self) -> None:
        self._spoken = True
        self._read_prompts()
        if self._asked.chat:
            ids = self._choices[0].prompt if self._asked.ids and self._with_ids else None
            counted = self._counted(self._choices[:1]) if self._asked.continuous_usage else None
            for choice in self._choices:
                self._put(self._wire.role(choice.index, ids, counted))
        if self._asked.again is None:
            return self._turn()
        self._replay()  # which needs no prefill
        self._flush()
        return self._later(self._order.ttft_s, self._turn)

    def _replay(self) -> None:
        """Say again what others said of it."""
        for choice in self._choices:
            while choice.again and choice.finish is None:
                self._tell(choice, *choice.replay())
        self._live = [choice for choice in self._live if choice.finish is None]

    def _turn(self) -> None:
        """Say what is due, then make room for the other streams."""
        self._timer = None
        for _ in range(STEPS_PER_TURN):
            if self.pipe.full:
                break
            if self._due() and self._hit():
                return self._flush()
            if not self._live:
                self._flush()
                return self._finish()
            if not self._ready():
                return self._flush()
            self._step()
        self._flush()
        if not self.pipe.full:
            self._later(0.0, self._turn)
        return None

    def _ready(self) -> bool:
        """Whether something can be said; if not, comes back when it can."""
        wait_s = self._wait_s()
        if wait_s > 0:
            self._later(wait_s, self._turn)
        return wait_s <= 0

    def _sayable(self, choice: Choice, tokens: int) -> int:
        """How many of so many tokens can be said."""
        return tokens

    def _wait_s(self) -> float:
        rate = self._order.tokens_per_s
        if not rate:
            return 0.0
        first = self._choices[0] if self._choices[0].finish is None else self._live[0]
        said = first.emitted - first.replayed
        return self._begun_s + (said + self._order.per_chunk - 1) / rate - self._engine.time()

    def _step(self) -> None:
        tokens = self._order.per_chunk
        fault = self._fault
        if fault is not None and fault.at > self._reached():
            tokens = min(tokens, fault.at - self._reached())  # strike exactly after token `at`
        for choice in self._live:
            if sayable := self._sayable(choice, tokens):
                self._say(choice, sayable)
        if any(choice.finish for choice in self._live):
            self._live = [choice for choice in self._live if choice.finish is None]

    def _say(self, choice: Choice, tokens: int) -> None:
        ids, text = choice.step(tokens)
        self.work.tokens += len(ids)
        self._tell(choice, ids, text)

    def _tell(self, choice: Choice, ids: list[int], text: str) -> None:
        asked = self._asked
        prompt_ids = choice.prompt if asked.ids and not choice.begun else None
        if asked.echoes is not None and not choice.begun:
            text = asked.echoes[choice.index // asked.choices] + text
            prompt_ids = choice.prompt
        choice.begun = True
        event = self._wire.content(
            choice.index,
            text,
            ids if asked.ids else None,
            with_ids=self._with_ids,
            prompt_ids=prompt_ids,
            finish=choice.finish,
            stop=choice.stop,
            counted=self._counted([choice]) if asked.continuous_usage else None,
            last=choice.finish is not None and not asked.include_usage,
        )
        self._put(wire.padded(event, self._order.pad))

    def _put(self, event: bytes) -> None:
        self._out.append(wire.framed(event))

    def _flush(self) -> None:
        if self._out:
            self.pipe.write(b"".join(self._out))
            self._out.clear()

    def _finish(self) -> None:
        if self._asked.include_usage and not self._is("usage_missing"):
            self._put(self._wire.total(self._counted(self._choices)))
        self._put(wire.DONE)
        self._flush()
        self._end(wire.STREAM_END)

    def _reached(self) -> int:
        assert self._fault is not None
        return self._choices[0].emitted if self._fault.here else self._choices[0].position

    def _due(self) -> bool:
        return self._fault is not None and self._fault.name in _STRIKES and self._reached() >= self._fault.at

    def _hit(self) -> bool:
        """Do what was ordered; tell whether that ends the saying."""
        assert self._fault is not None
        if self._is("cut_utf8") and not self._choices[0].inside_character:
            return False
        if self._choices[0].finish is not None and not self._live:
            return False  # too late to be seen: the answer is complete
        self._flush()
        self._over = _STRIKES[self._fault.name](self)
        return self._over

    def _cut_event(self) -> bool:
        self._step()
        whole = b"".join(self._out)
        self._out.clear()
        # Seeded by the answer itself: anywhere from its first byte to the one before the last.
        self.pipe.write(whole[: 1 + self._choices[0].position * 7919 % (len(whole) - 5)])
        self.pipe.close()
        return True

    def _hush(self) -> bool:
        return True

    def _error(self) -> bool:
        self._fail()
        return True

    def _fail(self) -> None:
        self._put(wire.INTERNAL_ERROR)
        self._put(wire.DONE)
        self._flush()
        self._end(wire.STREAM_END)

    def _abort(self) -> bool:
        for choice in self._live:
            choice.finish = "abort"
            ids: list[int] | None = [] if self._asked.ids else None
            last = not self._asked.include_usage
            self._put(self._wire.content(choice.index, "", ids, finish="abort", last=last))
        self._live = []
        self._flush()
        self._finish()
        return True

    def _end_early(self) -> bool:
        self._end(wire.STREAM_END)
        return True

    def _comment(self) -> bool:
        self.pipe.write(wire.framed(b": keep-alive\n\n"))
        self._later(COMMENT_EVERY_S, self._comment)
        return True

    def _big(self) -> bool:
        assert self._fault is not None
        self._put(self._wire.content(0, "x" * self._fault.size_bytes, [] if self._asked.ids else None))
        self._fault = None
        return False

    def _garbage(self) -> bool:
        self._put(b'data: {"id":\xff\xfe\x00{{not json\n\n')
        self._fault = None
        return False

    def _bad(self) -> bool:
        self._put(self._wire.content(0, "?", [self._vocab + 1, -1, 1 << 40]))
        self._fault = None
        return False


_STRIKES: dict[str, Callable[[StreamedAnswer], bool]] = {
    "cut": StreamedAnswer._cut,
    "cut_utf8": StreamedAnswer._cut,
    "cut_event": StreamedAnswer._cut_event,
    "silence_after": StreamedAnswer._hush,
    "error_then_done": StreamedAnswer._error,
    "abort_finish": StreamedAnswer._abort,
    "eof_no_done": StreamedAnswer._end_early,
    "comments_only": StreamedAnswer._comment,
    "big_event": StreamedAnswer._big,
    "garbage": StreamedAnswer._garbage,
    "bad_ids": StreamedAnswer._bad,
}
