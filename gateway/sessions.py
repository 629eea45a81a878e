"""When the sessions of clients began, as far as this process remembers."""

SESSIONS_MAX = 65_536  # those used last; clients name as many as they like


class Sessions:
    """Remembers when each session was seen first. Times by any one clock, in seconds."""

    def __init__(self, sessions_max: int = SESSIONS_MAX) -> None:
        self._sessions_max = sessions_max
        self._since: dict[tuple[str, str], float] = {}  # the one used last is the last

    def since(self, key_id: str, session: str, now_s: float) -> float:
        """Say when a session's first request came; one that is not known begins now."""
        at = key_id, session
        since = self._since[at] = self._since.pop(at, now_s)
        if len(self._since) > self._sessions_max:
            del self._since[next(iter(self._since))]
        return since
