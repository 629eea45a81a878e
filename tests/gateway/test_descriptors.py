"""Open files: how many clients there is room for."""

import resource
import subprocess
import sys

import pytest

PROBE = """
import resource, sys
from gateway.descriptors import clients_max
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(clients_max(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4096, reason="too few descriptors to try")
@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "clients", "then"),
    [
        pytest.param(256, 4096, 1000, 1000, 3128, id="raised to what is needed"),
        pytest.param(256, 1024, 1000, 298, 1024, id="raised as far as it goes"),
        pytest.param(4000, 4096, 1000, 1000, 4000, id="left where it is enough"),
        pytest.param(64, 64, 1000, 1, 64, id="hopeless"),
    ],
)
def test_clients_get_the_descriptors_that_there_are(soft, hard, wanted, clients, then):
    """The process raises its own limit; where the system is stricter, fewer clients are let in, and the log says so."""
    command = [sys.executable, "-c", PROBE, str(soft), str(hard), str(wanted)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    assert said.splitlines()[-1] == f"{clients} {then}"
    assert ("few_descriptors" in said) == (clients < wanted)
