"""What is asked of a server before the load: which model it has, and how long words are for it."""

import json
import logging
import urllib.request
from http.client import HTTPException
from typing import Any, NamedTuple

from loadtests.traffic.text import words

CALL_S_MAX = 30.0
VERSION_CHARS_MAX = 64
PROBE_WORDS = (20, 220)  # of two prompts: what a template adds is in both
log = logging.getLogger(__name__)


# An answer that cannot be read, or is another one than was asked for.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, HTTPException)


class Staying(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a key goes to who it was meant for."""

    def redirect_request(self, *_: Any) -> None:
        """None: the redirect is an error, as it is to the load."""


OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), Staying)  # past proxies, as the load goes


class NoModel(Exception):
    """A server that does not tell which models it has; says why."""


class Server(NamedTuple):
    """A server's root, and a key for it."""

    root: str
    key: str

    def first_model(self) -> str:
        """The first model that it has. Raises NoModel."""
        try:
            return str(self._call("/v1/models")["data"][0]["id"])
        except UNREADABLE as error:
            raise NoModel(f"{self.root}/v1/models does not tell a model ({_why(error)}): give --model") from None

    def version(self) -> str:
        """As vLLM tells it; "" where nobody does."""
        try:
            return str(self._call("/version")["version"])[:VERSION_CHARS_MAX]
        except UNREADABLE:
            return ""

    def words_per_token(self, model: str) -> float:
        """Asked by two prompts and one token each; 1 where it does not say."""
        try:
            short, long = (self._prompt_tokens(model, words("probe", count)) for count in PROBE_WORDS)
            return round((PROBE_WORDS[1] - PROBE_WORDS[0]) / (long - short), 3)
        except UNREADABLE as error:
            log.warning(
                "%s does not tell how many tokens a prompt has (%s): a word is taken for one", self.root, _why(error)
            )
            return 1.0

    def _prompt_tokens(self, model: str, text: str) -> int:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        return int(self._call("/v1/chat/completions", body)["usage"]["prompt_tokens"])

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        with OPENER.open(urllib.request.Request(self.root + path, data, headers), timeout=CALL_S_MAX) as response:
            return json.load(response)


def _why(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)
