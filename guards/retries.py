"""How many requests may be asked again elsewhere because a server answered with an error. Pure.

A number of tries for each request bounds nothing that matters: where every server fails, all requests together are
multiplied by it, just when servers can take the least. So what is bounded is the sum, as a share of what comes, and a
few more so that a quiet fleet can retry at all (Finagle's RetryBudget). A request counts once: for as long as it is
remembered, so is every retry that it allowed.
"""

WINDOW_S = 10  # for which requests and retries are remembered, second by second
SHARE, PER_S = 0.2, 10.0


class Retries:
    """What all requests together may ask again.

    share: of the requests of the last seconds. per_s: beside that. Times in seconds, by the caller's clock.
    """

    __slots__ = ("_per_s", "_requests", "_retries", "_second", "_share")

    def __init__(self, share: float = SHARE, per_s: float = PER_S) -> None:
        assert 0 <= share <= 1
        assert per_s >= 0
        self._share, self._per_s = share, per_s
        self._requests, self._retries = [0] * WINDOW_S, [0] * WINDOW_S  # by second, the oldest overwritten
        self._second = 0

    def request(self, now_s: float) -> None:
        """A request is sent to the first server that it goes to."""
        self._requests[self._at(now_s)] += 1

    def take(self, now_s: float) -> bool:
        """Take one retry, or hear that there is none."""
        at, some = self._at(now_s), self.left(now_s)
        if some:
            self._retries[at] += 1
        return some

    def used_up(self, now_s: float) -> bool:
        """Whether there were some lately, and none is left."""
        return not self.left(now_s) and any(self._retries)

    def left(self, now_s: float) -> bool:
        """Whether there is one. Takes nothing."""
        self._at(now_s)
        return sum(self._retries) + 1 <= self._share * sum(self._requests) + self._per_s * WINDOW_S

    def _at(self, now_s: float) -> int:
        """Where the present second is counted; those that are too long ago are forgotten. Time never goes back."""
        second = int(now_s)
        if second > self._second:
            for gone in range(self._second + 1, min(second, self._second + WINDOW_S) + 1):
                self._requests[gone % WINDOW_S] = self._retries[gone % WINDOW_S] = 0
            self._second = second
        return self._second % WINDOW_S
