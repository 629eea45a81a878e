"""How long a request will wait for its first token on a replica, and between tokens: a p90 of each. Pure.

Several models are asked, and each is believed the more the better it was lately, by its pinball loss, which is what a
quantile is measured by (an exponentially weighted forecaster, as in Cesa-Bianchi and Lugosi, «Prediction, Learning, and
Games», 2006, chapter 2, but of losses that are forgotten; that loss is convex, so a mean is no worse than its models
are in the mean):

- *Usual*: the p90 of such prompts, by powers of two of their tokens.
- *As it stands*: that, and what is known of the replica, in a line: tokens to compute, tokens ahead, streams that run
  and wait, KV cache in use. It is a quantile regression, by least squares that are reweighted with each observation (a
  miss counts nine times as much, an error as the inverse of its size), so that the line is a p90 and not a mean.
- *Loaded*, between tokens only: the p90 of whatever came when as much was to be computed, by powers of two. A step with
  others' prompts in it takes many times as long as one without, whatever the line is.

Each is then corrected by adaptive conformal inference, apart for each size of prompt (guards/conformal.py; the line as
in Romano, Patterson and Candès, «Conformalized Quantile Regression», 2019). Outcomes come late, and out of order: a
guess has in it what is needed to learn from it, and is judged as it was given.

Who is told nothing for long stays where it was; nothing here grows with time.
"""

from collections.abc import Iterator
from math import exp
from operator import mul
from typing import NamedTuple

from guards.conformal import MISSES, Conformal
from guards.squares import Squares

BUCKETS = 20  # sizes of prompts, by powers of two; half a million tokens and more are one
THOUSAND, TEN = 1e-3, 1e-1  # what tokens, and streams, are counted in: all that the line adds up is of size 1 or so
TOKENS_MOST, STREAMS_MOST = 10_000_000, 100_000
OUTCOME_S_MOST = 3600.0
LATELY = 0.0009  # how much one outcome counts of the losses by which models are believed
WORSE = 0.01  # a loss that is by this share above the least is believed 1/e as much
SLOW = 0.01  # how much it counts of what is usual at all
LEAST_RATIO = 1e-6  # of `guess_s`, that an outcome is taken relative to
LEAST_ERROR = 0.1  # of what is usual; smaller ones count as this, or one lucky guess would count without bound
OUTLIER = 10.0  # times the usual error; what is beyond counts as this


class Situation(NamedTuple):
    """What is known when it is asked, of a request and the replica that it would go to.

    input_tokens: of the prompt; uncached_tokens: of those, what the replica has to compute.
    tokens_ahead: prompt tokens that it has to compute before, of requests it was given already.
    running, waiting: its streams. kv_use: the share of its KV cache that is in use, from 0 to 1; what is no such number
    counts as 0, since servers say it.
    """

    input_tokens: int
    uncached_tokens: int
    tokens_ahead: int
    running: int
    waiting: int
    kv_use: float


class Target(NamedTuple):
    """What is predicted. guess_s, guess_token_s: while nothing is known; at all, and per token that is to compute.

    step, early: how fast the correction adapts (guards/conformal.py). Slower where outcomes come in long after they
        were asked for.
    bounded: whether nothing is longer than what was seen lately; there is no such bound for a queue.
    loaded: whether that model is asked, too.
    """

    guess_s: float
    guess_token_s: float
    step: float
    early: float
    bounded: bool
    loaded: bool


FIRST_TOKEN = Target(guess_s=0.5, guess_token_s=2e-4, step=0.01, early=0.2, bounded=False, loaded=False)
BETWEEN_TOKENS = Target(guess_s=0.05, guess_token_s=0.0, step=0.003, early=0.0, bounded=True, loaded=True)


class Guess(NamedTuple):
    """What was predicted, in seconds, and what is needed to learn from how it came out.

    p90_s: what nine of ten stay within. each_s: as each model had it: usual, as it stands, and loaded where that is.
    bucket: of its prompt. own: whether that was asked itself, or a neighbour, since too little is known of it.
    work: the bucket of all that was to be computed. x: what the line adds up; what is loaded comes last.
    """

    p90_s: float
    each_s: tuple[float, ...]
    bucket: int
    own: bool
    work: int
    x: tuple[float, ...]


class Quantile:
    """The p90 of one thing on one replica."""

    __slots__ = (
        "_asked", "_believed", "_corrections", "_error", "_line", "_loaded", "_losses", "_target", "_typical",
    )  # fmt: skip

    def __init__(self, target: Target) -> None:
        self._target = target
        models = 3 if target.loaded else 2
        self._corrections: dict[int, tuple[Conformal, ...]] = {}  # of each model, by the size of prompts
        self._loaded: dict[int, Conformal] = {}
        self._asked: list[int | None] = [None] * BUCKETS  # of each bucket, the nearest of which enough is known
        per_thousand = target.guess_token_s / THOUSAND / target.guess_s
        start = (1.0, 0.0, per_thousand, per_thousand, 0.0, 0.0, 0.0)  # to begin with, what is guessed
        self._line = Squares((*start, 0.0) if target.loaded else start)
        self._typical = self._error = 1.0  # outcome and error, in units of `guess_s`, as all that is kept
        self._losses = [0.0] * models
        self._believed = (1.0 / models,) * models

    def guess(self, now: Situation) -> Guess:
        """Predict. It is never below 0, and always a number."""
        target = self._target
        unit_s = target.guess_s
        tokens, uncached, ahead, running, waiting, kv_use = now
        bucket = _bucket(tokens)
        asked = self._asked[bucket]
        if uncached > TOKENS_MOST or ahead > TOKENS_MOST or running > STREAMS_MOST or waiting > STREAMS_MOST:
            uncached, ahead = min(uncached, TOKENS_MOST), min(ahead, TOKENS_MOST)
            running, waiting = min(running, STREAMS_MOST), min(waiting, STREAMS_MOST)
        work = _bucket(uncached + ahead)
        if asked is None:
            usual_at = 1.0 + target.guess_token_s * (uncached + ahead) / unit_s
        else:
            corrections = self._corrections[asked]
            usual_at = corrections[0].plain
        x: tuple[float, ...] = (
            1.0, usual_at, THOUSAND * uncached, THOUSAND * ahead, TEN * running, TEN * waiting,
            kv_use if 0.0 <= kv_use <= 1.0 else float(kv_use > 1.0),
        )  # fmt: skip
        if target.loaded:
            loaded = self._loaded.get(work)
            loaded_at = usual_at if loaded is None or not loaded.enough else loaded.plain
            x = (*x, loaded_at)
        if asked is None:
            guess_s = usual_at * unit_s
            return Guess(guess_s, (guess_s,) * len(self._losses), bucket, False, work, x)
        usual = corrections[0].threshold
        standing = max(0.0, min(self._line_at(x) + corrections[1].threshold * self._error, OUTCOME_S_MOST / unit_s))
        if target.bounded:
            standing = min(corrections[0].most, standing)
        each_s: tuple[float, ...] = usual * unit_s, standing * unit_s
        if target.loaded:
            each_s = (*each_s, min(corrections[0].most, loaded_at * corrections[2].threshold) * unit_s)
        return Guess(sum(map(mul, self._believed, each_s)), each_s, bucket, asked == bucket, work, x)

    def knows(self, tokens: int) -> bool:
        """Whether enough was seen to say anything of a prompt of that size, or of one near to it."""
        return self._asked[_bucket(tokens)] is not None

    def note(self, guess: Guess, actual_s: float) -> None:
        """Learn how a guess came out. actual_s: from the moment of the guess on; never below 0."""
        assert actual_s >= 0.0, "time does not go back"
        unit_s = self._target.guess_s
        y = min(actual_s, OUTCOME_S_MOST) / unit_s
        corrections = self._of(guess.bucket)
        if guess.own:
            for one, said_s in zip(corrections, guess.each_s, strict=True):
                one.adapt(said_s < actual_s)
        line = self._line_at(guess.x)  # as it is now: the one that was asked may have known nothing yet
        usual = corrections[0]
        news = not usual.enough
        usual.note(y)
        if news and usual.enough:
            self._asked = [self._nearest(bucket) for bucket in range(BUCKETS)]
        corrections[1].note((y - line) / self._error)
        if self._target.loaded:
            corrections[2].note(y / max(guess.x[-1], LEAST_RATIO))
            self._loaded.setdefault(guess.work, Conformal(0.0)).note(y)
        self._believe(y, guess)
        self._learn(guess.x, y, line)

    def gave_up(self, guess: Guess, waited_s: float) -> None:
        """Learn from one that was not waited for to the end.

        A guess that it had outlived was too low; else nothing is known. Without this, those who wait longest would be
        left out of what is learnt, since they are the ones who leave.
        """
        if guess.own:
            for one, said_s in zip(self._of(guess.bucket), guess.each_s, strict=True):
                if waited_s > said_s:
                    one.adapt(True)

    def _believe(self, y: float, guess: Guess) -> None:
        """Note how far off each model was, and weigh them by that."""
        unit_s = self._target.guess_s
        losses = self._losses
        for at, said_s in enumerate(guess.each_s):
            losses[at] += LATELY * (_pinball(y, said_s / unit_s) - losses[at])
        least = max(min(losses), 1e-12)
        weights = [exp((least - loss) / (WORSE * least)) for loss in losses]
        total = sum(weights)
        self._believed = tuple(weight / total for weight in weights)

    def _line_at(self, x: tuple[float, ...]) -> float:
        """What the line says, as far as that can be: one that was thrown off is not believed without bound."""
        return max(0.0, min(self._line.value(x), OUTCOME_S_MOST / self._target.guess_s))

    def _learn(self, x: tuple[float, ...], y: float, line: float) -> None:
        size = self._typical + line  # errors are taken relative to what is usual and what was expected
        error = y - line
        side = 1.0 - MISSES if error > 0.0 else MISSES
        weight = side / max(abs(error) / size, LEAST_ERROR) / (size * size)
        self._line.note(x, y, weight)
        self._error += SLOW * (min(abs(error), OUTLIER * self._error) - self._error)
        self._error = max(self._error, 1e-6)
        self._typical += SLOW * (min(y, OUTLIER * self._typical) - self._typical)
        self._typical = max(self._typical, 1e-6)

    def _of(self, bucket: int) -> tuple[Conformal, ...]:
        found = self._corrections.get(bucket)
        if found is None:
            step, early = self._target.step, self._target.early
            found = self._corrections[bucket] = tuple(Conformal(step, early) for _ in self._losses)
        return found

    def _nearest(self, bucket: int) -> int | None:
        """The bucket itself if enough is known of it, else the nearest such; None while there is none."""
        for near in _outwards(bucket):
            if (one := self._corrections.get(near)) is not None and one[0].enough:
                return near
        return None


class Predictor:
    """Both predictions for one replica, or for several that are alike."""

    def __init__(self) -> None:
        self.first_token = Quantile(FIRST_TOKEN)
        self.between_tokens = Quantile(BETWEEN_TOKENS)


def _outwards(bucket: int) -> Iterator[int]:
    yield bucket
    for away in range(1, BUCKETS):
        yield bucket - away
        yield bucket + away


def _bucket(tokens: int) -> int:
    return min(BUCKETS - 1, max(0, tokens).bit_length())


def _pinball(actual: float, predicted: float) -> float:
    off = actual - predicted
    return (1.0 - MISSES) * off if off > 0.0 else -MISSES * off
