"""How far one stream is, and what it has cost: what others may ask of a relay."""

from collections.abc import Sequence

from gateway.stream.outbox import Outbox
from gateway.stream.races import Races
from gateway.stream.seams import House
from gateway.stream.telling import Telling
from guards.continuing import Continues, Way
from guards.refusal import Ending


class Standing:
    """A stream that is `open` until it has ended; then `ending` says how.

    failovers: how often it went on elsewhere after tokens were delivered.
    house: what was computed for it that nobody is charged for.
    """

    __slots__ = ("_out", "_races", "_telling", "ending")

    def __init__(self, out: Outbox, telling: Telling, races: Races) -> None:
        self.ending: Ending | None = None
        self._out, self._telling, self._races = out, telling, races

    @property
    def open(self) -> bool:
        return self.ending is None

    @property
    def failovers(self) -> int:
        return self._telling.failovers

    @property
    def house(self) -> House:
        return self._races.house

    @property
    def prompt_tokens(self) -> int:
        return self._telling.prompt_tokens

    @property
    def prompt_known(self) -> bool:
        return None not in self._telling.prompts

    @property
    def completion_tokens(self) -> int:
        return self._telling.completion_tokens

    @property
    def delivered(self) -> bool:
        """Whether the client has any of it; before, a lost leg is simply tried anew."""
        return self._out.sent or self._telling.begun

    @property
    def needs_leg(self) -> bool:
        """Whether part of it is left that no leg brings."""
        return self.open and any(one.finish_reason is None and one.owner is None for one in self._telling.choices)

    def way(self, continues: Continues | None) -> Way | None:
        """How its rest can come from a replica that continues so much by replay; None where that is not exact."""
        return self._telling.way(continues)

    def stuck(self, known: Sequence[Continues | None]) -> tuple[Ending, str]:
        """Say why it cannot go on at replicas that continue so much by replay."""
        feature = self._telling.obstacle(known)
        return Ending.UNCONTINUABLE, lost_and(f"{feature} cannot be continued exactly on another")

    async def stays(self, known: Sequence[Continues | None]) -> str | None:
        """Say why it can only end where it is; None where it can go on elsewhere: see `Telling.stays`."""
        return await self._telling.stays(known) if self.delivered else None


def lost_and(why: object) -> str:
    """Tell a client that its answer ends here."""
    return f"The server that generated this answer was lost, and {why}."
