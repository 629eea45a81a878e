"""Look-ups: which pages a store has, asked on a thread of its own. A slow store keeps requests waiting, and no step."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from vllm_plugin import logs

ANSWER_S_MAX = 0.5  # that a request waits for an answer: then it is computed, as if nothing were there
PATIENCE_S = 0.002  # that the scheduler waits for one that may be there at once, where nobody else waits
FRESH_S = 5.0  # that an answer stands: who waits for room for longer is asked for again
OPEN_MAX = 1024  # questions at once; of more than that nothing is looked up

log = logs.logger("lookups")

Held = Callable[[Sequence[bytes]], int]  # of a store, of its contract


class _Question:
    """One request's. answer: None while there is none."""

    def __init__(self, keys: Sequence[bytes], asked_s: float) -> None:
        self.keys, self.asked_s = keys, asked_s
        self.answer: int | None = None
        self.done = threading.Event()


class Lookups:
    """held: of a store. It may take its time."""

    def __init__(self, held: Held, clock: Callable[[], float] = time.monotonic) -> None:
        self._held, self._clock = held, clock
        self._of: dict[str, _Question] = {}
        self._open: deque[_Question] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._busy = False
        self._thread = threading.Thread(target=self._run, name="holdfast-lookups", daemon=True)
        self._thread.start()

    def held(self, request_id: str, keys: Sequence[bytes]) -> int | None:
        """How many of these keys, from the first on, are there without a gap; None: ask again, in the next pass.

        May be asked any number of times. 0 where nobody knows after ANSWER_S_MAX.
        """
        now_s = self._clock()
        question = self._of.get(request_id)
        if question is None or question.keys != keys or now_s - question.asked_s > FRESH_S:
            question = self._of[request_id] = _Question(keys, now_s)
            if not self._ask(question):
                question.answer = 0
        if question.answer is None and now_s - question.asked_s > ANSWER_S_MAX:
            question.answer = 0
        return question.answer

    def drop(self, request_id: str) -> None:
        """It does not wait any more."""
        question = self._of.pop(request_id, None)
        if question is not None and question.answer is None:
            question.answer = 0

    def close(self) -> None:
        """Nothing is looked up any more; what is being looked up ends by itself."""
        with self._changed:
            self._ending = True
            self._changed.notify()

    def _ask(self, question: _Question) -> bool:
        with self._changed:
            if len(self._open) >= OPEN_MAX or self._ending:
                return False
            at_once = not self._open and not self._busy
            self._open.append(question)
            self._changed.notify()
        if at_once:
            question.done.wait(PATIENCE_S)
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.wait_for(lambda: self._open or self._ending)
                if self._ending:
                    return
                question = self._open.popleft()
                self._busy = True
            if question.answer is None:  # whoever gave it up has one
                question.answer = self._count(question.keys)
            question.done.set()

    def _count(self, keys: Sequence[bytes]) -> int:
        """A store that says what no store may say has nothing; the thread goes on, for all others ask it too."""
        try:
            return self._held(keys)
        except Exception as error:
            log.error("holdfast.lookup_failed", error=type(error).__name__, pages=len(keys))
            return 0
