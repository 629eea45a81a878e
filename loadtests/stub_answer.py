"""One answer being given: paced, streamed or plain, and broken where ordered."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loadtests import stub_wire as wire
from loadtests.stub_choice import Choice
from loadtests.stub_language import Language
from loadtests.stub_orders import Order
from loadtests.stub_pipe import Pipe
from loadtests.stub_request import Asked, error_body

STEPS_PER_TURN = 16  # then the other streams have theirs
COMMENT_EVERY_S = 0.05
USAGE_LIE = 3


@dataclass
class Work:
    """An answer as the server's books see it: who asked, and what was said so far."""

    request_id: str
    answer_id: str
    created: int
    tokens: int = 0
    finished: bool = False


class Answer:
    """Says what was asked, in engine steps of one event per choice."""

    def __init__(
        self,
        asked: Asked,
        order: Order,
        language: Language,
        model: str,
        work: Work,
        pipe: Pipe,
        done: Callable[[], None],
    ) -> None:
        """done: called when the answer has ended and the connection can carry another."""
        self.work = work
        self.pipe = pipe
        self._asked, self._order, self._done = asked, order, done
        self._model = model
        self._fingerprint = f"vllm-0.32.0-{language.seed & 0xFFFFFFFF:08x}"
        self._wire = wire.Wire(asked.chat, work.answer_id, work.created, model, self._fingerprint)
        self._choices = [
            Choice(language, asked, prompt, index, order.tokens)
            for prompt in range(len(asked.prompts))
            for index in range(asked.choices)
        ]
        self._live = list(self._choices)
        first = self._choices[0]
        self._fault = order.fault if order.fault is not None and order.fault.strikes(first.start) else None
        self._with_ids = not self._is("no_ids")
        self._vocab = language.vocab
        self._loop = asyncio.get_running_loop()
        self._begun_s = self._loop.time() + order.ttft_s
        self._timer: asyncio.Handle | None = None
        self._out: list[bytes] = []
        self._over = False  # nothing more will be said, whether or not the connection stays

    def begin(self) -> None:
        """Start to answer."""
        if self._is("status"):
            assert self._fault is not None
            status = self._fault.status
            self.pipe.write(wire.answer(status, error_body(status, "Ordered by the test", "InternalServerError")))
            self._end()
        elif self._asked.stream:
            self.pipe.write(wire.HEAD_STREAM)
            self._over = self._is("silence")
            if not self._over:
                self._later(self._order.ttft_s, self._first)
        elif not self._is("silence"):
            rate = self._order.tokens_per_s
            said = [self._said_all(choice) for choice in self._choices]
            duration_s = max(len(ids) for ids, _ in said) / rate if rate else 0.0
            self._later(self._order.ttft_s + duration_s, lambda: self._plain(said))

    def abandon(self) -> None:
        """Stop: the peer has gone."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._live = []

    def resume(self) -> None:
        """Go on after the socket was full."""
        if self._timer is None and not self._over and self._asked.stream:
            self._later(0.0, self._turn)

    def _is(self, name: str) -> bool:
        return self._fault is not None and self._fault.name == name

    def _later(self, delay_s: float, act: Callable[[], object]) -> None:
        self._timer = self._loop.call_later(delay_s, act) if delay_s > 0 else self._loop.call_soon(act)

    def _first(self) -> None:
        if self._asked.chat:
            ids = self._choices[0].prompt if self._asked.ids and self._with_ids else None
            counted = self._counted(self._choices[:1]) if self._asked.continuous_usage else None
            for choice in self._choices:
                self._put(self._wire.role(choice.index, ids, counted))
        self._turn()

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
            wait_s = self._wait_s()
            if wait_s > 0:
                self._later(wait_s, self._turn)
                return self._flush()
            self._step()
        self._flush()
        if not self.pipe.full:
            self._later(0.0, self._turn)
        return None

    def _wait_s(self) -> float:
        rate = self._order.tokens_per_s
        if not rate:
            return 0.0
        said = self._choices[0].emitted if self._choices[0].finish is None else self._live[0].emitted
        return self._begun_s + (said + self._order.per_chunk - 1) / rate - self._loop.time()

    def _step(self) -> None:
        tokens = self._order.per_chunk
        fault = self._fault
        if fault is not None and fault.at > self._reached():
            tokens = min(tokens, fault.at - self._reached())  # strike exactly after token `at`
        for choice in self._live:
            self._say(choice, tokens)
        if any(choice.finish for choice in self._live):
            self._live = [choice for choice in self._live if choice.finish is None]

    def _say(self, choice: Choice, tokens: int) -> None:
        ids, text = choice.step(tokens)
        self.work.tokens += len(ids)
        asked = self._asked
        prompt_ids = choice.prompt if asked.ids and not choice.begun else None
        if asked.echoes is not None and not choice.begun:
            text = asked.echoes[choice.index // asked.choices] + text
            prompt_ids = choice.prompt
        choice.begun = True
        self._put(
            self._wire.content(
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
        )

    def _put(self, event: bytes) -> None:
        self._out.append(wire.framed(event))

    def _flush(self) -> None:
        if self._out:
            self.pipe.write(b"".join(self._out))
            self._out.clear()

    def _counted(self, choices: list[Choice]) -> dict[str, Any]:
        prompt = sum(len(ids) for ids in self._asked.prompts) if len(choices) > 1 else len(choices[0].prompt)
        factor = USAGE_LIE if self._is("wrong_usage") else 1
        return wire.usage(prompt * factor, sum(choice.emitted for choice in choices) * factor)

    def _finish(self) -> None:
        if self._asked.include_usage and not self._is("usage_missing"):
            self._put(self._wire.total(self._counted(self._choices)))
        self._put(wire.DONE)
        self._flush()
        self._end(wire.STREAM_END)

    def _end(self, data: bytes = b"") -> None:
        self._over = True
        self._live = []
        self.work.finished = True
        if data:
            self.pipe.write(data)
        self.pipe.after(self._done)

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

    def _cut(self) -> bool:
        assert self._fault is not None
        self._live = []
        if self._fault.how == "fin":
            self.pipe.close()
        else:
            self.pipe.reset()
        return True

    def _cut_event(self) -> bool:
        self._step()
        whole = b"".join(self._out)
        self._out.clear()
        # Seeded by the answer itself: anywhere from its first byte to the one before the last.
        self.pipe.write(whole[: 1 + self._choices[0].position * 7919 % (len(whole) - 5)])
        self._live = []
        self.pipe.close()
        return True

    def _hush(self) -> bool:
        return True

    def _error(self) -> bool:
        self._put(wire.INTERNAL_ERROR)
        self._put(wire.DONE)
        self._flush()
        self._end(wire.STREAM_END)
        return True

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

    def _said_all(self, choice: Choice) -> tuple[list[int], str]:
        ids, text = choice.step(1 << 30)
        self.work.tokens += len(ids)
        return ids, text

    def _plain(self, said: list[tuple[list[int], str]]) -> None:
        self._timer = None
        name = self._fault.name if self._fault is not None else ""
        if name == "error_then_done":
            self.pipe.write(wire.answer(500, error_body(500, "Internal server error", "InternalServerError")))
            return self._end()
        shown = self._asked.ids and name != "no_ids"
        choices = [self._plain_choice(choice, *one, shown) for choice, one in zip(self._choices, said, strict=True)]
        if name == "abort_finish":
            choices[0]["finish_reason"] = "abort"
        head = {"id": self.work.answer_id, "created": self.work.created, "model": self._model}
        counted = None if name == "usage_missing" else self._counted(self._choices)
        prompt_ids = list(self._choices[0].prompt) if shown else None
        body = wire.plain(self._asked.chat, head, choices, counted, self._fingerprint, prompt_ids)
        data = wire.answer(200, b"\xff{{" + body[3:] if name == "garbage" else body)
        if name in ("cut", "cut_utf8", "cut_event", "eof_no_done", "silence_after", "comments_only"):
            return self._half(name, data, len(data) - len(body) // 2)
        self.pipe.write(data)
        return self._end()

    def _plain_choice(self, choice: Choice, ids: list[int], text: str, shown: bool) -> dict[str, Any]:
        assert choice.finish is not None
        if self._is("bad_ids"):
            ids = [self._vocab + 1, -1, 1 << 40]
        given = ids if shown else None
        if self._asked.chat:
            return wire.chat_choice(choice.index, text, choice.finish, choice.stop, given)
        if self._asked.echoes is not None:
            text = self._asked.echoes[choice.index // self._asked.choices] + text
        prompt_ids = list(choice.prompt) if shown else None
        return wire.text_choice(choice.index, text, choice.finish, choice.stop, given, prompt_ids)

    def _half(self, name: str, data: bytes, size: int) -> None:
        self.pipe.write(data[:size])
        self._live = []
        if name in ("cut_event", "eof_no_done"):
            self.pipe.close()
        elif name in ("cut", "cut_utf8"):
            self._cut()


_STRIKES: dict[str, Callable[[Answer], bool]] = {
    "cut": Answer._cut,
    "cut_utf8": Answer._cut,
    "cut_event": Answer._cut_event,
    "silence_after": Answer._hush,
    "error_then_done": Answer._error,
    "abort_finish": Answer._abort,
    "eof_no_done": Answer._end_early,
    "comments_only": Answer._comment,
    "big_event": Answer._big,
    "garbage": Answer._garbage,
    "bad_ids": Answer._bad,
}
