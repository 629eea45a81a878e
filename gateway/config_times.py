"""The parts of `holdfast.yaml` that say how long things may take."""

from typing import Annotated

from pydantic import AfterValidator, Field

from gateway.config_part import Part, wrong
from guards.timeouts import Times

KEEPALIVE_S_MIN = 0.1  # of comments; each stream that waits gets one so often
SESSION_S_MAX = 90 * 86_400


def _seldom(seconds: float) -> float:
    if 0 < seconds < KEEPALIVE_S_MIN:
        raise wrong(f"below {KEEPALIVE_S_MIN:g}", "Write seconds, such as 15, or 0 for no comments.")
    return seconds


Keepalive = Annotated[float, Field(ge=0, le=3600), AfterValidator(_seldom)]


class TurnTimes(Part):
    """How long one request, and all of a session, may take, in seconds; unsaid, as `timeouts` says."""

    total_s: float | None = Field(default=None, ge=1, le=86_400)
    session_s: float | None = Field(default=None, ge=1, le=SESSION_S_MAX)

    @property
    def times(self) -> Times:
        """The same, as deadlines take it."""
        return Times(self.total_s, self.session_s)


class ModelTimes(TurnTimes):
    """What a model says of its own, beside that: a large one may need more for a long prompt."""

    first_token_s: float | None = Field(default=None, ge=0.1, le=3600)
    between_tokens_s: float | None = Field(default=None, ge=0.05, le=600)


class Timeouts(Part):
    """How long each wait may last, in seconds."""

    connect_s: float = Field(default=0.5, ge=0.01, le=60)  # a dead host never answers; all of this is added TTFT
    first_token_s: float = Field(default=60, ge=0.1, le=3600)  # long prompts compute for tens of seconds
    between_tokens_s: float = Field(default=10, ge=0.05, le=600)  # above one scheduling stall of a busy server
    total_s: float = Field(default=3600, ge=1, le=86_400)  # one request, all its legs together
    session_s: float | None = Field(default=None, ge=1, le=SESSION_S_MAX)  # all requests of one x-session-id
    keepalive_s: Keepalive = 15  # then a silent stream's client gets a comment; 0: never
    probe_s: float = Field(default=1.0, ge=0.01, le=60)  # one health probe; three bad ones in a row are a verdict
    probe_every_s: float = Field(default=1.0, ge=0.05, le=300)  # between probes of one replica
    suspect_s: float = Field(default=0.25, ge=0.02, le=600)  # silence below this is never suspicious; a hedge costs
    canary_s: float = Field(default=2.0, ge=0.1, le=600)  # for one token, on a silent server or one that comes back
    head_s: float = Field(default=10, ge=0.1, le=600)  # for a client to send the head of a request, once it began
    body_s: float = Field(default=30, ge=0.1, le=600)  # for a client to send its request: slow senders hold memory
    client_idle_s: float = Field(default=75, ge=0.1, le=3600)  # a client's connection between requests
    client_stall_s: float = Field(default=30, ge=0.1, le=3600)  # for a client that stopped reading and holds KV
    idle_s: float = Field(default=4, ge=0.1, le=3600)  # an unused upstream connection; below vLLM's own keep-alive
    drain_s: float = Field(default=30, ge=0, le=3600)  # for running streams after SIGTERM
