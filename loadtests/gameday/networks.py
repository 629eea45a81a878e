"""Two network namespaces with a cable between them: the gateway is in one, a server's address in the other.

        here                     the gateway's network              the server's network
    clients ── relay ═ socket ═ relay ── gateway ── cable ── relay ═ socket ═ relay ── vLLM (here)

Sockets of the file system are the same in all networks, so that nothing of this machine's own network is touched; no
root is needed where users may make namespaces. All of it ends with its processes.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from gateway.local.leashed import Leashed
from loadtests.gateway_process import Gateway, until

TOOLS = ("unshare", "nsenter", "ip")
ADDRESS, MINE = "10.77.0.2", "10.77.0.1"  # of either end of the cable, in networks that nobody else sees
CABLE, FAR_END = "hf0", "hf1"
RELAY = Path(__file__).with_name("relay.py")
READY_S_MAX, COMMAND_S_MAX = 20.0, 10.0
# Run in the gateway's network. «$!» is the server's, which must be another one before a cable is laid into it.
SCRIPT = f"""set -e
folder=$1 python=$2 relay=$3; shift 3
ip link set lo up
unshare --net "$python" -I "$relay" "$1" & far=$!; shift
for _ in $(seq 200); do
  [ "$(readlink /proc/$far/ns/net)" = "$(readlink /proc/self/ns/net)" ] || break; sleep 0.05
done
ip link add {CABLE} type veth peer name {FAR_END} netns $far
ip addr add {MINE}/24 dev {CABLE}; ip link set {CABLE} up
nsenter --target $far --net sh -c 'ip addr add {ADDRESS}/24 dev {FAR_END} && ip link set {FAR_END} up'
echo $far > "$folder/far"; echo $$ > "$folder/near"
exec "$python" -I "$relay" "$@"
"""


def lacking() -> str:
    """Why there can be no networks of one's own here; empty where there can."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"{', '.join(missing)} is missing (util-linux, iproute2)"
    try:
        script = f"ip link add {CABLE} type veth peer name {FAR_END}"
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"network namespaces cannot be made: {error}"
    return "" if done.returncode == 0 else f"network namespaces are not allowed here: {done.stderr.strip()[-200:]}"


class Networks:
    """From `with` to its end. behind: host:port of the server whose cable can be pulled; beside: of one that has none.

    url: of the server behind the cable, in the gateway's network. command: runs `holdfast` there.
    """

    def __init__(self, folder: Path, behind: str, beside: str) -> None:
        self.folder, self.beside = folder, beside
        folder.mkdir(parents=True)
        self._behind = behind
        self.address = f"{ADDRESS}:{behind.rpartition(':')[2]}"
        self.url = f"http://{self.address}"
        self._started: list[Leashed] = []

    @property
    def command(self) -> tuple[str, ...]:
        """Runs what follows in the gateway's network."""
        return ("nsenter", "--target", str(self._pid("near")), "--user", "--net")

    def reach(self, gateway: Gateway) -> None:
        """Let the ports of a gateway in that network be reached from here."""
        ports = (gateway.port, gateway.admin_port)
        sockets = [f"{self.folder}/{port}" for port in ports]
        ours = [f"127.0.0.1:{port}={socket}" for port, socket in zip(ports, sockets, strict=True)]
        theirs = [f"{socket}=127.0.0.1:{port}" for port, socket in zip(ports, sockets, strict=True)]
        self._start("reached", [*self.command, *relay(*theirs)])
        self._start("reaching", relay(*ours))

    def pull(self) -> None:
        """The cable: nothing gets through, and nobody is told."""
        self._cable("down")

    def plug(self) -> None:
        """It is back. May be called again."""
        self._cable("up")

    def __enter__(self) -> Self:
        sockets = self.folder
        self._start("here", relay(f"{sockets}/behind={self._behind}", f"{sockets}/beside={self.beside}"))
        far = f"0.0.0.0:{self.address.rpartition(':')[2]}={sockets}/behind"
        shell = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", SCRIPT, "sh"]
        near = f"{self.beside}={sockets}/beside"
        self._start("networks", [*shell, str(sockets), sys.executable, str(RELAY), far, near])
        until(lambda: self._pid("near"), READY_S_MAX, "networks of our own")
        return self

    def __exit__(self, *_: object) -> None:
        for one in reversed(self._started):
            one.stop()
        self._started = []

    def _start(self, name: str, command: Sequence[str]) -> None:
        one = Leashed(name, command, log=self.folder / f"{name}.log", environment=os.environ, polite_s_max=0.5)
        self._started.append(one)
        one.start()

    def _cable(self, way: str) -> None:
        command = ["nsenter", "--target", str(self._pid("far")), "--user", "--net", "ip", "link", "set", FAR_END, way]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_S_MAX, check=True)

    def _pid(self, of: str) -> int:
        """A process in one of the networks; 0 while they are not made."""
        if not (died := self._started[-1]).alive:
            raise died.failure("ended")
        file = self.folder / of
        return int(file.read_text() or 0) if file.exists() else 0


def relay(*pairs: str) -> list[str]:
    """The command of one."""
    return [sys.executable, "-I", str(RELAY), *pairs]
