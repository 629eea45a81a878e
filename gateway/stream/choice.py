"""One answer of a stream: which ids the client has, and the text they made."""

from array import array
from binascii import crc32
from collections.abc import Sequence

from gateway.stream.text import Decoder, Piece, TextLost, Transcript


class Choice:
    """State of one choice, kept across legs. It costs four bytes a token.

    index, prompt: the client's number of the choice, and of the prompt it answers.
    ids: every token delivered.
    finish_reason: set once the engine (or a stop string found here) ended it.
    transcript: set once the gateway words this choice itself; before, the engine's bytes are passed on.
    """

    __slots__ = ("_characters", "_crc", "decoder", "finish_reason", "ids", "index", "prompt", "role_sent", "transcript")

    def __init__(self, index: int, prompt: int) -> None:
        self.index, self.prompt = index, prompt
        self.ids = array("I")
        self.finish_reason: str | None = None
        self.role_sent = False
        self.transcript: Transcript | None = None
        self.decoder: Decoder | None = None
        self._characters = 0
        self._crc = 0

    @property
    def begun(self) -> bool:
        """Whether the client has any text of it."""
        return self._characters > 0

    def passed(self, ids: Sequence[int], text: str) -> None:
        """Note what the client got in the engine's own words."""
        self.ids.extend(ids)
        if text:
            self._characters += len(text)
            self._crc = crc32(text.encode(), self._crc)

    async def adopt(self, decoder: Decoder, transcript: Transcript, prompt: Sequence[int]) -> None:
        """From here on the gateway words this choice: rebuild its text from its ids.

        Raises TextLost where the rebuilt text is not what the client was sent: then something other
        than the ids shaped it (a parser, another tokenizer), and going on would garble it.
        """
        transcript.add(await decoder.adopt(prompt, self.ids))
        if crc32(transcript.skip(self._characters).encode(), 0) != self._crc:
            raise TextLost("the text sent so far is not what its tokens decode to")
        self.decoder, self.transcript = decoder, transcript

    def worded(self, pieces: Sequence[Piece]) -> int:
        """Take in decoded ids; answer how many of them count (those after a stop string do not)."""
        assert self.transcript is not None
        kept = self.transcript.add(pieces)
        flat = [one for piece in pieces for one in piece.ids][:kept]
        self.ids.extend(flat)
        if self.transcript.stopped is not None:
            self.finish_reason = "stop"
        return kept
