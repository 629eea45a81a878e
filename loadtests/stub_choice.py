"""One choice of one answer: tokens said, text released, and why it ended."""

from collections.abc import Sequence

from loadtests.stub_language import Language, Speech
from loadtests.stub_request import Asked
from loadtests.stub_text import Decoder, Output
from loadtests.stub_tokenizer import EOS

ALL = 1 << 30  # tokens: more than any answer has


class Choice:
    """A choice being said, one engine step at a time."""

    def __init__(self, language: Language, asked: Asked, prompt_index: int, index: int, length: int | None) -> None:
        """index: which of n; length: of the whole answer in tokens, or None.

        again: events that it begins with, which another server said. replayed: tokens in all of them.
        """
        prompt = asked.prompts[prompt_index]
        self._given = (language, asked, prompt_index, index, length)
        self.index = prompt_index * asked.choices + index
        self.prompt: Sequence[int] = prompt
        self.finish: str | None = None
        self.stop: str | int | None = None
        self.begun = False
        self._asked = asked
        self._left = asked.max_tokens[prompt_index]
        ends = (lambda emitted: False) if asked.ignore_eos else (lambda emitted: emitted >= asked.min_tokens)
        noise = None if asked.noise is None else asked.noise + index
        self._speech = Speech(language, prompt, index, length, ends, noise)
        self.again = list(asked.again[index]) if asked.again is not None else []
        self.replayed = sum(map(len, self.again))
        self._output = Output(Decoder(language.bytes_of, prompt), asked.stops, asked.keep_stop, asked.min_tokens)

    def total(self) -> int:
        """Tokens of all that this server will say."""
        return len(Choice(*self._given).step(ALL)[0])

    @property
    def start(self) -> int:
        """Tokens of the answer that were in the prompt already, or are replayed."""
        return self._speech.position - self._speech.emitted + (0 if self._speech.emitted else self.replayed)

    @property
    def position(self) -> int:
        """Tokens of the answer so far, those in the prompt included."""
        return self._speech.position

    @property
    def emitted(self) -> int:
        """Tokens said by this server."""
        return self._speech.emitted

    @property
    def inside_character(self) -> bool:
        """Tell whether ids were given whose text was not, for want of bytes."""
        return self._speech.inside_character

    def step(self, tokens: int) -> tuple[list[int], str]:
        """Say up to that many tokens; give their ids and the text that became sure."""
        ids: list[int] = []
        while len(ids) < tokens and self.finish is None:
            token = self._speech.next()
            ids.append(token)
            self._left -= 1
            self._judge(token)
        return ids, self._output.release(self.finish is not None)

    def replay(self) -> tuple[list[int], str]:
        """Say the next event of those that another server said before; see `step`."""
        ids: list[int] = []
        for token in self.again.pop(0):
            if self.finish is None:
                ids.append(self._speech.say(token))
                self._left -= 1
                self._judge(token)
        return ids, self._output.release(self.finish is not None)

    def _judge(self, token: int) -> None:
        """Take the token in and see whether it ends the choice, in vLLM's order of precedence."""
        stopped = token in self._asked.stop_ids and self.emitted >= self._asked.min_tokens
        if token == EOS:
            self.finish = "stop"
        elif stopped:
            self.finish, self.stop = "stop", token
        if self.finish is None or (stopped and self._asked.keep_stop):
            found = self._output.add(token)
            if found is not None:
                self.finish, self.stop = "stop", found
        if self.finish is None and self._left <= 0:
            self.finish = "length"
