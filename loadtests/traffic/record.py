"""What came of each request, and how the generator of the load fared meanwhile: lines of JSON, one file a process."""

import time
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

RECORDS_MAX = 1_000_000  # of one process; what is beyond is counted, and not kept


class Stage(StrEnum):
    """How far a request came. All but the first four are errors."""

    WHOLE = "whole"  # finish reason, [DONE], and usage that says as many tokens as came
    LEFT = "left"  # its client hung up, as it was to
    STOPPED = "stopped"  # refused or ended by its budget, as it was to be
    UNFINISHED = "unfinished"  # the run was over first
    CONNECT = "connect"  # no connection, or lost before a status
    REFUSED = "refused"  # a status of 400 or above
    BEFORE_FIRST = "before the first token"
    MID_STREAM = "mid-stream"  # an error event, or the connection was lost
    TRUNCATED = "truncated"  # a clean end without finish reason or [DONE]: SDKs take it for success
    ACCOUNTING = "accounting"  # whole, but usage is missing or says other than what came


ERRORS = frozenset(Stage) - {Stage.WHOLE, Stage.LEFT, Stage.STOPPED, Stage.UNFINISHED}


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request.

    sent_s: on the machine's monotonic clock. due_s: when it should have been sent, on the same, where a plan says so.
    where: "gateway", or "direct". pair: of two records that are the same request, asked there and there.
    Durations are from `sent_s` on: first_s to the first token, last_s to the last one, end_s to the end.
    gaps: between events with tokens, as buckets; gap_max_s: the longest.
    tokens: that came; counted: whether by their ids, else by usage. step: which of the offered rates it belongs to.
    """

    sent_s: float
    scenario: str
    stage: Stage
    where: str = "gateway"
    due_s: float | None = None
    pair: str = ""
    step: int = 0
    tenant: str = ""
    session: str = ""
    turn: int = 0
    status: int = 0
    code: str = ""
    said: str = ""
    first_s: float | None = None
    last_s: float | None = None
    end_s: float = 0.0
    gaps: dict[int, int] = {}
    gap_max_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    counted: bool = False
    replica: str = ""
    retries: int = 0

    @property
    def per_token_s(self) -> float | None:
        """Seconds for each token after the first; None where there were less than two."""
        if self.first_s is None or self.last_s is None or self.tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)

    @property
    def lag_s(self) -> float | None:
        """By how much later than planned it was sent."""
        return None if self.due_s is None else max(0.0, self.sent_s - self.due_s)


class Arrival(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A client that was due. begun: whether it was let in; there may be too many already for this generator."""

    due_s: float
    begun_s: float
    step: int = 0
    begun: bool = True


class Strain(msgspec.Struct, kw_only=True):
    """One second of a generator's process. cpu: share of a core; late_max_s: by which it woke up late, at worst."""

    at_s: float
    process: int
    cpu: float
    late_max_s: float
    open: int


class Look(msgspec.Struct, kw_only=True):
    """One look at a gateway. budgets: scope and kind -> (spent, amount).

    metrics: samples of its /metrics; those that count, since the first look.
    """

    at_s: float
    metrics: dict[str, float] = {}
    budgets: dict[str, tuple[float, float]] = {}


class Lines(msgspec.Struct, omit_defaults=True):
    """One line of a file: one of these."""

    request: Record | None = None
    arrival: Arrival | None = None
    strain: Strain | None = None
    look: Look | None = None
    lost: int = 0


_decoder, _encoder = msgspec.json.Decoder(Lines), msgspec.json.Encoder()


class Writer:
    """Adds lines to a file of its own; what it was given is on disk when `write` returns."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = (folder / f"{name}.jsonl").open("wb", buffering=0)
        self.written = self.lost = 0

    def write(self, **said: Any) -> None:
        """Add a line: request=..., arrival=..., strain=... or look=..."""
        if self.written >= RECORDS_MAX and "strain" not in said:
            self.lost += 1
            return
        self.written += 1
        with suppress(ValueError):  # closed
            self._file.write(_encoder.encode(said) + b"\n")

    def close(self) -> None:
        """Say what was not kept, and be done."""
        if self.lost and not self._file.closed:
            self._file.write(_encoder.encode({"lost": self.lost}) + b"\n")
        self._file.close()


class Tail:
    """Reads what was added to the files of a folder since it was last asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._at: dict[Path, int] = {}

    def read(self) -> Iterator[Lines]:
        """All whole lines that are new. A line that cannot be read is left out: its process was killed in it."""
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._at.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._at[path] = self._at.get(path, 0) + len(line)
                    with suppress(msgspec.DecodeError):
                        yield _decoder.decode(line)


def now_s() -> float:
    """The clock of records: the same for all processes of a machine."""
    return time.monotonic()
