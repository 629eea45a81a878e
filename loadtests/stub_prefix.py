"""A prefix cache: which beginnings of prompts the stub has computed before, in pages, as vLLM has them."""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

PAGE = 16
PAGES_MAX = 65_536  # those used last


class Prefixes:
    """Knows prompts by the digests of their pages, each of all that comes before it, too.

    token_s: how long a token of a prompt takes that is not there, in seconds.
    """

    def __init__(self, token_s: float) -> None:
        self.token_s = token_s
        self._pages: OrderedDict[bytes, None] = OrderedDict()

    def enter(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt are there; all of them are, afterwards. Its last one is always computed."""
        cached, chain, whole = 0, b"", True
        for start in range(0, len(prompt) - PAGE + 1, PAGE):
            page = b"".join(one.to_bytes(4, "big") for one in prompt[start : start + PAGE])
            chain = blake2b(chain + page, digest_size=16).digest()
            whole = whole and chain in self._pages
            cached += PAGE * whole
            self._pages[chain] = None
            self._pages.move_to_end(chain)
        while len(self._pages) > PAGES_MAX:
            self._pages.popitem(last=False)
        return min(cached, (len(prompt) - 1) // PAGE * PAGE)
