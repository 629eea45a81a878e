"""The network between the gateway and the server that serves is cut: nothing gets through, and nobody is told."""

from gateway.local.engine import Engine
from loadtests.gameday import networks
from loadtests.gameday.faults.cut import Healed
from loadtests.gateway_process import HOLDFAST, Gateway

CABLED = "cabled"  # what the gateway calls the server at the end of the cable
NO_SECRET = "of-a-game-day"  # a server that is not at loopback must have a key; ours asks for none


class NetworkCut(Healed):
    """In network namespaces of its own: no rule and no interface of this machine's network is touched."""

    name = "network-cut"
    title = "the network to a serving vLLM is cut"
    weight = 6
    why = "switches and cables fail less often than servers, but then no connection breaks, and new ones find nobody"
    limit_s = 300.0

    def lacking(self) -> str:
        return networks.lacking()

    def in_front(self) -> Gateway:
        """A gateway in a network where the first server is at the end of a cable, and the other one is beside it."""
        ground = self.ground
        first, second = ground.fleet.engines
        cabled = networks.Networks(ground.scratch / "networks", first.address, second.address)
        self.networks = ground.cleanup.enter_context(cabled)
        replicas = [
            {"name": CABLED, "url": cabled.url, "role": "active", "key": NO_SECRET},
            {"url": second.url, "role": "standby"},
        ]
        command = (*cabled.command, str(HOLDFAST))
        return ground.gateway([], cabled.reach, command=command, of_model={"replicas": replicas})

    def served_by(self, address: str | None) -> Engine:
        """The server behind the cable by its name."""
        return self.ground.fleet.engines[0] if address == CABLED else super().served_by(address)

    def hurt(self, victim: Engine) -> str:
        """Pull the cable, which only the first server has."""
        if victim is not self.ground.fleet.engines[0]:
            raise LookupError("the streams are not at the server behind the cable")
        self.networks.pull()
        return "its cable was pulled"

    def heal(self) -> None:
        """Plug it in again."""
        self.networks.plug()
