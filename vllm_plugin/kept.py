"""What the scheduler's half remembers: of each request, and for the next orders. Pure."""

from dataclasses import dataclass, field

from vllm_plugin.page import Load, Page
from vllm_plugin.schedule import Request


@dataclass(slots=True)
class Kept:
    """What is remembered of a request. let_in: the blocks that it hit, None where it kept its own. sealed: how many of
    its pages were; held: how many blocks it has. emitted_step: of its last token. times: that it was computed again.
    expects: whether others may bring pages to it, or have, until it computes for the first time. request: itself.
    """

    request: Request

    let_in: tuple[int, ...] | None = ()
    sealed: int = 0
    held: int = 0
    emitted_step: int = -1
    times: int = 0
    expects: bool = False


class Coming:
    """Pages that are being loaded, and the chains of the pages before them."""

    def __init__(self) -> None:
        self._parents: dict[Page, bytes] = {}
        self._of: dict[str, tuple[Page, ...]] = {}

    def add(self, load: Load) -> None:
        """They are, from now on."""
        self._of[load.request_id] = load.pages
        self._parents.update(zip(load.pages, (load.parent, *(page.chain for page in load.pages)), strict=False))

    def came(self, page: Page) -> bytes | None:
        """It did, and continues this one; None where nobody waits for it any more."""
        return self._parents.pop(page, None)

    def over(self, request_id: str) -> None:
        """What has not come for it will not."""
        for page in self._of.pop(request_id, ()):
            self._parents.pop(page, None)

    def clear(self) -> None:
        """Nothing will."""
        self._parents.clear()
        self._of.clear()


@dataclass(slots=True)
class Next:
    """What goes with the next orders."""

    forget: list[int] = field(default_factory=list)
    withdraw: list[int] = field(default_factory=list)
    rewind: list[str] = field(default_factory=list)
    release: list[str] = field(default_factory=list)
    load: list[Load] = field(default_factory=list)
    reread: bool = False
