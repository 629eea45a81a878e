"""What one request is to be answered, whoever answers it, and what a client would read had nothing happened."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from gateway.stream.call import Endpoint
from gateway.stream.seams import Ask
from loadtests import stub_wire as wire
from loadtests.stub_language import Language, Speech
from loadtests.stub_tokenizer import EOS
from tests.gateway.stream.fakes import Engine, Run
from tests.gateway.stream.vllm_text import VOCAB

WINDOW = 512  # tokens, prompt and answer together


class Said(NamedTuple):
    """One choice, whole."""

    ids: list[int]
    text: str
    finish: str
    stop: str | int | None


class Oracle(Engine):
    """The answers to one request. A server that is asked to go on after what was never said raises AssertionError."""

    def whole(self, body: dict[str, Any], chat: bool) -> list[Said]:
        """Every choice as an uninterrupted server says it."""
        return [_said(run) for run in self._runs(body, chat)]

    def plain(self, body: dict[str, Any], chat: bool) -> bytes:
        """The body of a plain answer."""
        runs = self._runs(body, chat)
        said = [(run, _said(run)) for run in runs]
        if chat:
            choices = [wire.chat_choice(run.index, one.text, one.finish, one.stop, one.ids) for run, one in said]
        else:
            choices = [
                wire.text_choice(run.index, one.text, one.finish, one.stop, one.ids, run.prompt) for run, one in said
            ]
        head = {"id": "cmpl-1", "created": 1, "model": "tiny"}
        return wire.plain(chat, head, choices, None, "vllm-0.32", runs[0].prompt if chat else None)

    def stream(self, body: dict[str, Any], chat: bool, per_chunk: int) -> list[bytes]:
        """All events of a streamed answer, each with its empty line."""
        path = Endpoint.CHAT if chat else Endpoint.COMPLETIONS
        self.asked.clear()
        return [raw + b"\n\n" for raw in self.events(Ask(path, json.dumps(body).encode(), ()), per_chunk)]

    def _runs(self, body: dict[str, Any], chat: bool) -> list[Run]:
        if body.get("max_tokens") is None:
            prompt = body.get("prompt")
            known = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], int) else self.prompts[0]
            body["max_tokens"] = WINDOW - len(known)
        return super()._runs(body, chat)

    def _rest(self, ids: list[int]) -> list[int]:
        for number, answer in enumerate(self.answers):
            prompt = self.prompts[number * len(self.prompts) // len(self.answers)]
            said = ids[len(prompt) :]
            if ids[: len(prompt)] == prompt and said == answer[: len(said)] and len(said) < len(answer):
                return answer[len(said) :]
        raise AssertionError("asked to go on after what it never said")


def answer(prompt: Sequence[int], choice: int, tokens: int) -> list[int]:
    """An answer of so many tokens, EOS included; a function of the prompt and the choice."""
    speech = Speech(_language(), prompt, choice, tokens, lambda emitted: emitted >= tokens - 4)
    ids: list[int] = []
    while ids[-1:] != [EOS]:
        ids.append(speech.next())
    return ids


@cache
def _language() -> Language:
    return Language(VOCAB, 7)


class _Plainly:
    """Stands where a wire is, and keeps what is said instead of wording it."""

    def content(
        self,
        choice: int,
        text: str,
        ids: list[int],
        prompt_ids: Any = None,
        finish: str | None = None,
        stop: str | None = None,
    ) -> tuple[str, list[int], str | None]:
        return text, ids, stop


def _said(run: Run) -> Said:
    stand_in: Any = _Plainly()
    ids: list[int] = []
    texts: list[str] = []
    stop: str | int | None = None
    while run.finish is None:
        said: Any = run.event(stand_in, 1)
        texts.append(said[0])
        ids += said[1]
        stop = said[2]
    return Said(ids, "".join(texts), run.finish, stop)
