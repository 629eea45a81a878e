"""What servers say of a request, without where they are.

vLLM's words on a bad request are the best there are («maximum context length is 2048 tokens»), so they reach the
client as they are. What tells of the house does not: addresses, hosts, URLs, files. Pure.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv6Address

WORDS_MAX = 16_384  # characters of a server's words that reach a client; they may quote its whole prompt
ADDRESS, FILE = "[address]", "[file]"

# Documentation that vLLM and its libraries refer to. Everything else behind :// is an address.
PUBLIC = r"(?:errors\.pydantic\.dev|docs\.vllm\.ai|docs\.pydantic\.dev|huggingface\.co|github\.com|json-schema\.org)"
_URL = re.compile(
    rf"\b[a-z][a-z0-9+.-]{{0,19}}://(?!{PUBLIC}(?:[/\s\"'`)\],]|$))[^\s\"'`<>]*[^\s\"'`<>.,;:!?)\]}}]", re.IGNORECASE
)
_ROOTS = "usr|home|root|opt|var|tmp|mnt|srv|etc|proc|dev|lib|run|data|app|workspace|vllm-workspace|nfs|scratch"
_FILE = re.compile(rf"(?<![\w./~-])~?/(?:{_ROOTS})/[\w.@+/~-]*[\w@+/~-]")
_V6 = re.compile(r"(?<![\w:.\]])\[?([0-9a-f:.]{2,64}+)(?!\w)((?:%\w{1,15})?(?:\](?::\d{1,5})?)?)", re.IGNORECASE)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_V4 = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?::\d{{1,5}})?(?![\w]|\.\d)")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_PORT = re.compile(rf"(?<![\w.-])(?:localhost|(?:{_LABEL}\.){{1,8}}[a-z][a-z0-9-]{{1,61}}):\d{{2,5}}(?!\w)", re.I)
_INTERNAL = re.compile(
    rf"(?<![\w.-])(?:{_LABEL}\.){{1,8}}(?:local|localdomain|internal|intranet|lan|svc|corp|arpa)\b(?::\d+)?", re.I
)
_PATTERNS = ((_URL, ADDRESS), (_FILE, FILE), (_V4, ADDRESS), (_HOST_PORT, ADDRESS), (_INTERNAL, ADDRESS))


class Scrub:
    """Takes addresses out of text. hosts: the replicas' own names, which no pattern may know."""

    def __init__(self, hosts: Iterable[str]) -> None:
        patterns = list(_PATTERNS)
        named = sorted({host for host in hosts if not _looks_like_a_word(host)}, key=len, reverse=True)
        words = sorted({host for host in hosts if _looks_like_a_word(host)}, key=len, reverse=True)
        if named:
            patterns.append((_either(named, r"(?::\d{1,5})?(?![\w-])"), ADDRESS))
        if words:  # a host named «vllm» is told from the word by its port
            patterns.append((_either(words, r":\d{1,5}(?!\w)"), ADDRESS))
        self._patterns = patterns

    def __call__(self, said: str) -> str:
        """The text without addresses, hosts, URLs and files; cut where it is absurdly long."""
        if len(said) > WORDS_MAX:
            said = said[:WORDS_MAX] + "…"
        said = _PATTERNS[0][0].sub(ADDRESS, said)
        said = _V6.sub(_v6, said)
        for pattern, instead in self._patterns:
            said = pattern.sub(instead, said)
        return said


def _v6(match: re.Match[str]) -> str:
    """Colons alone are no address: a time, a slice, a C++ name. It has two groups, a port, or is the loopback.

    What ends it may be the sentence's own full stop or colon, which stays.
    """
    said = match[1]
    for end in range(len(said), max(1, len(said) - 3), -1):
        try:
            address = IPv6Address(said[:end])
        except ValueError:
            continue
        if address.is_loopback or "]:" in match[2] or sum(map(bool, said[:end].split(":"))) > 1:
            return ADDRESS + ("" if match[2] else said[end:])
    return match[0]


def _looks_like_a_word(host: str) -> bool:
    return host.isalpha()


def _either(hosts: list[str], then: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, hosts))}){then}", re.IGNORECASE)
