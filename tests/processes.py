"""The gateway as a process of its own, as tests know it; it lies where `holdfast gameday` has it from."""

from loadtests.gateway_process import HOLDFAST, ROOT, START_S_MAX, Gateway, free_ports, id_of, until

TRUSTING = {"breaker_calls": 100_000}  # `health` where one request after the other is broken at one server, on purpose

__all__ = ["HOLDFAST", "ROOT", "START_S_MAX", "TRUSTING", "Gateway", "free_ports", "id_of", "until"]
