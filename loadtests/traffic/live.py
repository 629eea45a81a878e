"""What a run looks like while it runs, for a terminal; elsewhere a line now and then."""

import time
from collections import Counter, deque
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtests.traffic.buckets import bucket, quantile_s, together
from loadtests.traffic.options import Sla
from loadtests.traffic.record import ERRORS, Lines, Record, Stage, Strain
from loadtests.traffic.strain import CPU_MAX, LATE_S_MAX

RECENT = 2000  # whole answers, whose quantiles are shown
ERRORS_SHOWN = 4
WINDOW_S = 5.0  # of rates
PLAIN_EVERY_S = 5.0


class Live:
    """Takes lines of records, shows how far it is. takes_s: from the first one until no more clients come."""

    def __init__(self, title: str, takes_s: float, sla: Sla) -> None:
        self._title, self._takes_s, self._sla = title, takes_s, sla
        self._begun_s = time.monotonic()
        self._stages: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._whole: deque[Record] = deque(maxlen=RECENT)
        self._ended: deque[tuple[float, int, bool]] = deque(maxlen=100_000)
        self._strains: dict[int, Strain] = {}
        self._told_s, self._heard = 0.0, False
        self.requests = 0

    @property
    def errors(self) -> int:
        """Requests that failed so far."""
        return sum(self._stages[stage] for stage in ERRORS)

    def take(self, lines: Iterable[Lines]) -> None:
        """Take in what is new."""
        for line in lines:
            if not self._heard:
                self._heard, self._begun_s = True, time.monotonic()
            if line.strain is not None:
                self._strains[line.strain.process] = line.strain
            if (record := line.request) is not None and record.where == "gateway":
                self.requests += 1
                self._stages[record.stage] += 1
                self._ended.append((time.monotonic(), record.tokens, self._sla.kept(record)))
                if record.stage is Stage.WHOLE:
                    self._whole.append(record)
                elif record.stage in ERRORS:
                    self._errors[
                        f"{record.stage}: {record.status or ''} {record.code} {record.said}".strip()[:110]
                    ] += 1

    def __rich__(self) -> RenderableType:
        gone_s = time.monotonic() - self._begun_s
        open_now = sum(one.open for one in self._strains.values())
        requests, tokens, good = self._rates()
        head = Text.assemble((self._title, "bold"), f"   {gone_s:.0f} s of {self._takes_s:.0f} s   {open_now} open")
        rates = Text(f"{requests:.1f} requests/s   {good:.1f} good/s   {tokens:.0f} tokens/s   {self.requests} in all")
        parts: list[RenderableType] = [
            head,
            ProgressBar(self._takes_s, min(gone_s, self._takes_s), width=60),
            rates,
            self._table(),
        ]
        stages = "   ".join(f"{stage} {count}" for stage, count in sorted(self._stages.items()))
        parts.append(Text(stages, "red" if self.errors else ""))
        parts += [Text(f"  {count} × {said}", "red") for said, count in self._errors.most_common(ERRORS_SHOWN)]
        cpu = max((one.cpu for one in self._strains.values()), default=0.0)
        late_s = max((one.late_max_s for one in self._strains.values()), default=0.0)
        if cpu > CPU_MAX or late_s > LATE_S_MAX:
            limit = f"the generator is at its limit: {cpu:.0%} of a core, {late_s * 1e3:.0f} ms late"
            parts.append(Text(limit, "yellow"))
        return Group(*parts)

    def plain(self, console: Console) -> None:
        """A line, when it is time for one."""
        if time.monotonic() - self._told_s >= PLAIN_EVERY_S:
            self._told_s = time.monotonic()
            requests, tokens, good = self._rates()
            console.print(
                f"{self._told_s - self._begun_s:.0f} s: {self.requests} requests, {requests:.1f}/s, {good:.1f} good/s, "
                f"{tokens:.0f} tokens/s, {self.errors} failed", highlight=False,
            )  # fmt: skip

    def _rates(self) -> tuple[float, float, float]:
        now_s = time.monotonic()
        recent = [(tokens, good) for at_s, tokens, good in self._ended if now_s - at_s <= WINDOW_S]
        over_s = max(1.0, min(WINDOW_S, now_s - self._begun_s))
        return (
            len(recent) / over_s,
            sum(tokens for tokens, _ in recent) / over_s,
            sum(good for _, good in recent) / over_s,
        )

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("ms, lately", "p50", "p90", "p99"):
            table.add_column(name, justify="left" if name.startswith("ms") else "right")
        rows = (
            ("TTFT", Counter(bucket(one.first_s) for one in self._whole if one.first_s is not None)),
            ("ITL", together(one.gaps for one in self._whole)),
            ("E2E", Counter(bucket(one.end_s) for one in self._whole)),
        )
        for name, buckets in rows:
            told = [quantile_s(buckets, share) for share in (0.5, 0.9, 0.99)]
            table.add_row(name, *("–" if one is None else f"{one * 1e3:.1f}" for one in told))
        return table
