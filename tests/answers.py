"""What a client saw of an answer, as tests know it; it lies where `holdfast gameday` has it from."""

from loadtests.answers import NO_LIMIT, Answer, ask

__all__ = ["NO_LIMIT", "Answer", "ask"]
