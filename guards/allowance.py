"""How often something costly may be done: a token bucket. Pure."""


class Allowance:
    """At most `burst` at once, and `per_s` per second in the long run. Times in seconds, by the caller's clock."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at = float(burst), 0.0

    def take(self, now: float) -> bool:
        """Take one, or hear that there is none."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
