"""`holdfast demo`: a real vLLM server is killed in the middle of a stream, and the client does not notice.

Everything is real: two vLLM servers on the CPU, the gateway process, the command line, the official OpenAI client. The
judge is an uninterrupted answer taken directly from a vLLM server. Exit status 0 only when the text is equal, the
charge exact, and the journal shows that another server took over.
"""

import argparse
import contextlib
import itertools
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from gateway.local.engine import Engine, start_fleet, stop_fleet, tiny_model
from gateway.local.leashed import LaunchFailed
from gateway.local.screen import Screen
from gateway.local.site import Site, SiteFailed

MODEL = "tiny"
USER = "demo"
BUDGET_TOKENS = 10_000
ANSWER_TOKENS = (300, 1000, 3000)  # tried in turn: on a busy machine a server may be done before the client reads
KILL_AFTER_CHUNKS = 60
REQUEST: dict[str, Any] = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You are a patient storyteller."},
        {"role": "user", "content": "Tell me how a stream survives the death of its server."},
    ],
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
    "extra_body": {"ignore_eos": True, "repetition_penalty": 1.3},
}
REQUEST_S_MAX = 60.0


class TooLate(Exception):
    """The server had finished before the kill; it still lives."""


class DemoFailed(Exception):
    """What did not work, for the person watching."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was seen. Times in ms, budgets in tokens; `charged` is what the books say, `usage` what the answer said.

    legs: the servers that worked on the answer, in order, from the gateway's journal.
    """

    text_equal: bool
    charge_exact: bool
    failed_over: bool
    killed: str
    legs: list[str]
    pause_ms: float
    usual_gap_ms: float
    usage_tokens: int
    reference_tokens: int
    charged_tokens: int
    spent_before: int
    spent_after: int
    holdfast: dict[str, Any] | None
    chars: int

    @property
    def ok(self) -> bool:
        """Whether the promises held."""
        return self.text_equal and self.charge_exact and self.failed_over


@dataclass(slots=True)
class Answer:
    """One streamed answer, as the client saw it. arrivals_s: when each piece of text came."""

    replica: str | None = None
    text: str = ""
    arrivals_s: list[float] = field(default_factory=list)
    usage_tokens: int = 0
    finish_reason: str | None = None
    extra: dict[str, Any] | None = None

    @property
    def gaps_ms(self) -> list[float]:
        """Between neighbouring pieces of text, in their order."""
        return [(b - a) * 1000 for a, b in itertools.pairwise(self.arrivals_s)]


def main(as_json: bool = False) -> NoReturn:
    """Run the demo and leave with its exit status. as_json: the story to stderr, one JSON object to stdout."""
    signal.signal(signal.SIGTERM, _leave)  # unwinds like Ctrl-C, so that everything started is stopped
    screen = Screen(sys.stderr if as_json else sys.stdout)
    try:
        verdict = show(screen)
    except (DemoFailed, LaunchFailed, SiteFailed) as failure:
        screen.say(f"\nThe demo could not be completed: {failure}", "bold red")
        sys.exit(1)
    except KeyboardInterrupt:
        screen.say("\nInterrupted; everything the demo started is stopped.", "yellow")
        sys.exit(130)
    if as_json:
        print(json.dumps({"ok": verdict.ok, **asdict(verdict)}))
    sys.exit(0 if verdict.ok else 1)


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signum)


def show(screen: Screen) -> Verdict:
    """The story, from an empty machine to the verdict; whatever it started is stopped at the end."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-demo-")))
        with screen.busy("A small model (32 million random weights: its answers are gibberish, its KV pages are real)"):
            model = tiny_model(size="small")
        with screen.busy("Two real vLLM servers, usually 30 to 60 s") as progress:
            engines = start_fleet(2, model, logs=folder, on_progress=progress)
            stack.callback(stop_fleet, engines)
        site = Site(folder, MODEL, model / "tokenizer.json", [engine.url for engine in engines])
        secret = site.cli("keys", "create", "--user", USER, "--tokens", str(BUDGET_TOKENS)).strip()
        with screen.busy("The gateway in front of them"):
            stack.enter_context(site.gateway)
            site.wait_ready()
        for tokens in ANSWER_TOKENS:
            with contextlib.suppress(TooLate):
                return interrupted(screen, site, secret, engines, tokens)
            screen.say("\n\nThe server had finished before the kill: once more, with a longer answer.", "yellow")
        raise DemoFailed("this machine is too busy: each answer was complete before its server could be killed")


def interrupted(screen: Screen, site: Site, secret: str, engines: list[Engine], tokens: int) -> Verdict:
    """One answer without and one with a kill, compared. Raises TooLate, and then nobody was killed."""
    before = site.budget()
    screen.say(f"  {before}")

    screen.say("\nThe answer as it should be, directly from a vLLM server:", "bold")
    reference = ask(f"{engines[0].url}/v1", "none", tokens, screen.text)

    screen.say("\n\nThe same request through the gateway; its server is going to be killed:", "bold")
    killing = Killing(engines, screen)
    answer = ask(f"{site.url}/v1", secret, tokens, killing.text, on_start=killing.aim)
    screen.say("\n")
    after = site.settled_budget(before.spent + answer.usage_tokens)
    screen.say(f"  {after}")
    verdict = judge(answer, reference, killing, site.legs(), (before.spent, after.spent))
    report(screen, verdict, reference, answer)
    return verdict


def ask(
    base_url: str,
    key: str,
    tokens: int,
    on_text: Callable[[str], None],
    on_start: Callable[[Answer], None] = lambda _: None,
) -> Answer:
    """Stream one answer with the official client; `on_text` sees each piece when it arrives."""
    try:
        from openai import OpenAI, OpenAIError
    except ImportError:
        raise DemoFailed("the OpenAI client is missing: pip install '.[demo]'") from None
    answer = Answer()
    try:
        with (
            OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=REQUEST_S_MAX) as client,
            client.chat.completions.create(**REQUEST, max_tokens=tokens) as stream,
        ):
            answer.replica = stream.response.headers.get("x-holdfast-replica")
            on_start(answer)
            for chunk in stream:
                take(answer, chunk, on_text)
    except OpenAIError as error:
        raise DemoFailed(f"the request to {base_url} failed: {error}") from error
    return answer


def take(answer: Answer, chunk: Any, on_text: Callable[[str], None]) -> None:
    """Add one chunk to the answer."""
    if chunk.usage is not None:
        answer.usage_tokens = chunk.usage.total_tokens
    answer.extra = (chunk.model_extra or {}).get("holdfast") or answer.extra
    for choice in chunk.choices:
        answer.finish_reason = choice.finish_reason or answer.finish_reason
        if piece := choice.delta.content:
            answer.arrivals_s.append(time.monotonic())
            answer.text += piece
            on_text(piece)


class Killing:
    """Kills the server that serves an answer, once, after KILL_AFTER_CHUNKS pieces of it."""

    def __init__(self, engines: list[Engine], screen: Screen) -> None:
        self.victim: Engine | None = None
        self.killed_s = 0.0
        self.pieces_before = 0
        self._engines = engines
        self._pids: list[int] = []
        self._screen = screen
        self._pieces = 0

    def aim(self, answer: Answer) -> None:
        """Find the server in the answer's headers."""
        for engine in self._engines:
            if engine.address == answer.replica:
                self.victim = engine
                # Looked up now: on a busy machine the answer could be over before /proc is read.
                self._pids = [process.pid for process in engine.processes()]
                return
        raise DemoFailed(f"the gateway did not say which server answers (x-holdfast-replica: {answer.replica})")

    def text(self, piece: str) -> None:
        """Show a piece of the answer, and kill when it is the one."""
        self._screen.text(piece, "green" if self.killed_s else "cyan")
        self._pieces += 1
        if self._pieces == KILL_AFTER_CHUNKS:
            self.fire()

    def fire(self) -> None:
        """SIGKILL to the whole process group: no goodbye, no last words. Raises TooLate, before, where it is idle."""
        assert self.victim is not None
        if not self.victim.running():
            raise TooLate
        self.victim.kill(signal.SIGKILL)
        self.killed_s = time.monotonic()
        self.pieces_before = self._pieces
        self._screen.text(f" «kill -9 {self.victim.address}, pids {self._pids}» ", "bold white on red")


def judge(answer: Answer, reference: Answer, killing: Killing, legs: list[str], spent: tuple[int, int]) -> Verdict:
    """Compare what the client got and was charged with the uninterrupted run. Pure."""
    if killing.victim is None or not killing.killed_s:
        raise DemoFailed(f"the answer ended after {len(answer.arrivals_s)} pieces, before the kill")
    gaps = answer.gaps_ms
    since_kill = gaps[killing.pieces_before - 1 :]
    if not since_kill:
        raise DemoFailed("nothing of the answer came after the kill")
    charged = spent[1] - spent[0]
    return Verdict(
        text_equal=answer.text == reference.text and answer.finish_reason == reference.finish_reason,
        charge_exact=charged == answer.usage_tokens == reference.usage_tokens,
        failed_over=len(legs) > 1 and legs[0] == killing.victim.address != legs[-1],
        killed=killing.victim.address,
        legs=legs,
        pause_ms=round(max(since_kill), 1),
        usual_gap_ms=round(statistics.median(gaps), 1),
        usage_tokens=answer.usage_tokens,
        reference_tokens=reference.usage_tokens,
        charged_tokens=charged,
        spent_before=spent[0],
        spent_after=spent[1],
        holdfast=answer.extra,
        chars=len(answer.text),
    )


def report(screen: Screen, verdict: Verdict, reference: Answer, answer: Answer) -> None:
    """Say what was seen, good or bad."""
    if verdict.failed_over:
        screen.say(f"  killed    vLLM {verdict.killed} in mid-stream; {verdict.legs[-1]} took over", "green")
    else:
        screen.say(f"  killed    vLLM {verdict.killed} too late, or NOBODY took over: {verdict.legs}", "bold red")
    screen.say(f"  pause     {verdict.pause_ms:.0f} ms, seen by the client (usual gap: {verdict.usual_gap_ms:.0f} ms)")
    if verdict.text_equal:
        screen.say(f"  text      equal to the uninterrupted answer, all {verdict.chars} characters", "green")
    else:
        at = first_difference(answer.text, reference.text)
        there, here = (repr(text[max(0, at - 20) : at + 40]) for text in (reference.text, answer.text))
        screen.say(f"  text      DIFFERS at character {at}: {there} became {here}", "bold red")
    charge = f"  charge    {verdict.charged_tokens} tokens; prompt and answer are {verdict.usage_tokens}"
    if verdict.charge_exact:
        screen.say(f"{charge}: charged exactly once", "green")
    else:
        screen.say(f"{charge}, the uninterrupted run's were {verdict.reference_tokens}: NOT EXACT", "bold red")


def first_difference(one: str, other: str) -> int:
    """The index of the first character that differs; the length of the shorter where none does."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="holdfast demo", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    main(parser.parse_args().json)
