"""One answer of a stream: which ids the client has, the text they made, and whose turn it is to bring more."""

from array import array
from binascii import crc32
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gateway.stream.text import Decoder, Piece, TextLost, Transcript

if TYPE_CHECKING:
    from gateway.stream.part import Part


class Words(NamedTuple):
    """What words the rest of a choice here, primed with all of it so far."""

    decoder: Decoder
    transcript: Transcript


class Choice:
    """State of one choice, kept across legs. It costs four bytes a token, and eight for each event that brings many.

    index, prompt: the client's number of the choice, and of the prompt it answers.
    ids: every token delivered. longer: where events begin that brought more than one of them, each with how many.
    characters, crc: how much text was passed on in the engine's own words, and its checksum.
    apart, apart_crc: the same of what parsers made of it beside: reasoning, names and arguments of tools.
    finish_reason: set once the engine (or a stop string found here) ended it.
    transcript: set once the gateway words this choice itself; before, the engine's bytes are passed on.
    owner: the part of the leg whose tokens are delivered; None when it was lost.
    rival: one that was asked for the same tokens, since the owner is silent.
    """

    __slots__ = (
        "apart", "apart_crc", "characters", "crc", "decoder", "finish_reason", "ids", "index", "longer", "owner",
        "prompt", "rival", "role_sent", "transcript",
    )  # fmt: skip

    def __init__(self, index: int, prompt: int) -> None:
        self.index, self.prompt = index, prompt
        self.ids, self.longer = array("I"), array("I")
        self.finish_reason: str | None = None
        self.role_sent = False
        self.transcript: Transcript | None = None
        self.decoder: Decoder | None = None
        self.owner: Part | None = None
        self.rival: Part | None = None
        self.characters = self.apart = 0
        self.crc = self.apart_crc = 0

    @property
    def begun(self) -> bool:
        """Whether the client has any text of it."""
        return self.characters > 0

    def chunks(self) -> list[list[int]]:
        """The ids, event by event, as they came."""
        ids, at, found = self.ids.tolist(), 0, []
        for start, count in zip(self.longer[::2], self.longer[1::2], strict=True):
            found += [[one] for one in ids[at:start]]
            found.append(ids[start : start + count])
            at = start + count
        return found + [[one] for one in ids[at:]]

    def together(self, count: int) -> None:
        """So many ids, which are taken in next, came in one event."""
        self.longer.extend((len(self.ids), count))

    def add_apart(self, text: str) -> None:
        """Text that a parser made was passed on, beside content."""
        self.apart += len(text)
        self.apart_crc = crc32(text.encode(), self.apart_crc)

    async def words(self, decoder: Decoder, transcript: Transcript, prompt: Sequence[int]) -> Words:
        """Rebuild the text of the choice from its ids, so that it can go on.

        Raises TextLost where the rebuilt text is not what the client was sent: then something other
        than the ids shaped it (a parser, another tokenizer), and going on would garble it.
        """
        transcript.add(await decoder.adopt(prompt, self.ids))
        if crc32(transcript.skip(self.characters).encode(), 0) != self.crc:
            raise TextLost("the text sent so far is not what its tokens decode to")
        return Words(decoder, transcript)

    def adopt(self, words: Words) -> None:
        """From here on the gateway words this choice."""
        self.decoder, self.transcript = words

    def worded(self, pieces: Sequence[Piece]) -> int:
        """Take in decoded ids; answer how many of them count (those after a stop string do not)."""
        assert self.transcript is not None
        kept = self.transcript.add(pieces)
        flat = [one for piece in pieces for one in piece.ids][:kept]
        self.ids.extend(flat)
        if self.transcript.stopped is not None:
            self.finish_reason = "stop"
        return kept
