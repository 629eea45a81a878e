"""Does this server compute? Evidence gathered after a silence -> a verdict. Pure.

One signal is never enough: streams stall for a long prefill, a canary waits in a full queue, a busy API process
answers /metrics late. Two together, without a single token meanwhile, are a hang (docs/failover.md).
"""

from dataclasses import dataclass

SEVERAL = 2  # silent streams that are one signal, if they are half of the server's or more


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of one replica since the suspicion arose.

    streams, silent: its streams, and those of them that are silent longer than is usual there.
    tokens: whether any stream brought a token meanwhile.
    canary: whether a request for one token was answered; None where it was refused or not asked.
    metrics: whether /metrics answered.
    computed: whether its counters of tokens moved; None where it has none.
    whole: whether nothing is missing that may yet be seen, such as how far the counters were before.
    """

    streams: int = 0
    silent: int = 0
    tokens: bool = False
    canary: bool | None = None
    metrics: bool = True
    computed: bool | None = None
    whole: bool = True

    @property
    def alive(self) -> bool:
        """Whether it was seen computing."""
        return self.tokens or self.canary is True or self.computed is True

    @property
    def signals(self) -> list[str]:
        """What speaks against it; each is independent of the others."""
        found = []
        if self.silent >= SEVERAL and self.silent * 2 >= self.streams:
            found.append(f"{self.silent} of {self.streams} streams are silent")
        if self.canary is False:
            found.append("a canary is not answered")
        if not self.metrics:
            found.append("/metrics does not answer")
        elif self.computed is False:
            found.append("its token counters stand still")
        return found

    @property
    def hung(self) -> bool:
        """Whether it is to be ejected."""
        return self.whole and not self.alive and len(self.signals) >= 2
