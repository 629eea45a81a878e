"""The part of `holdfast.yaml` that says where requests go."""

from pydantic import Field

from gateway.config_part import Part


class Routing(Part):
    """Which of a model's replicas a request goes to, where several are equally good."""

    sessions: bool = True  # those of one x-session-id go to one replica, whose prefix cache has their turns
    prefixes: bool = True  # and of others those whose prompts begin alike
    prefix_bytes: int = Field(default=2048, ge=64, le=65_536)  # so much of a beginning: hashed for each request
    load_ratio: float = Field(default=1.25, ge=1, le=100)  # of its share; with more a replica is passed over
    load_tokens: int = Field(default=8192, ge=0, le=10**9)  # above that, so that a quiet fleet stays as it is
