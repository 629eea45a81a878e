"""An answer in one piece: said whole, sent when the last token would have been due."""

from typing import Any

from loadtests import stub_wire as wire
from loadtests.stub_answer import Answer
from loadtests.stub_choice import ALL, Choice
from loadtests.stub_request import error_body

Said = tuple[list[int], str]  # ids and text of one choice


class PlainAnswer(Answer):
    """Says everything at once; faults that strike between tokens strike in the middle of its body."""

    def _begin(self) -> None:
        if self._is("silence"):
            return
        self._later(self._order.ttft_s, self._compute)

    def _compute(self) -> None:
        self._read_prompts()
        rate = self._order.tokens_per_s
        said = [self._said_all(choice) for choice in self._choices]
        duration_s = max(len(ids) for ids, _ in said) / rate if rate else 0.0
        self._later(duration_s, lambda: self._plain(said))

    def _said_all(self, choice: Choice) -> Said:
        ids, text = choice.step(ALL)
        self.work.tokens += len(ids)
        return ids, text

    def _plain(self, said: list[Said]) -> None:
        self._timer = None
        name = self._fault.name if self._fault is not None else ""
        if name == "error_then_done":
            return self._fail()
        shown = self._asked.ids and name != "no_ids"
        choices = [self._plain_choice(choice, *one, shown) for choice, one in zip(self._choices, said, strict=True)]
        if name == "abort_finish":
            choices[0]["finish_reason"] = "abort"
        head = {"id": self.work.answer_id, "created": self.work.created, "model": self._model}
        counted = None if name == "usage_missing" else self._counted(self._choices)
        prompt_ids = list(self._choices[0].prompt) if shown else None
        body = wire.plain(self._asked.chat, head, choices, counted, self._fingerprint, prompt_ids)
        body = wire.padded(body, self._order.pad)
        data = wire.answer(200, b"\xff{{" + body[3:] if name == "garbage" else body)
        if name in ("cut", "cut_utf8", "cut_event", "eof_no_done", "silence_after", "comments_only"):
            return self._half(name, data, len(data) - len(body) // 2)
        self.pipe.write(data)
        return self._end()

    def _fail(self) -> None:
        self.pipe.write(wire.answer(500, error_body(500, "Internal server error", "InternalServerError")))
        self._end()

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
        if name in ("cut_event", "eof_no_done"):
            self.pipe.close()
        elif name in ("cut", "cut_utf8"):
            self._cut()
