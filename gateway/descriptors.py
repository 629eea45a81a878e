"""Open files: the limit of this process, raised as far as the system lets it.

A gateway that runs out of them cannot reach servers that are well, nor write its books. So clients get a share only.
"""

import resource

import structlog

log = structlog.get_logger()

RESERVE = 128  # books, logs, ports, probes, tokenizers
PER_CLIENT = 3  # its connection, its server's, and that of a second server when the first is silent


def clients_max(wanted: int) -> int:
    """How many client connections the process has descriptors for: `wanted`, or fewer where the system is stricter."""
    needed = RESERVE + PER_CLIENT * wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft >= needed:
        return wanted
    room = max(1, (soft - RESERVE) // PER_CLIENT)
    log.warning("gateway.few_descriptors", descriptors=soft, wanted=needed, client_connections=room)
    return room
