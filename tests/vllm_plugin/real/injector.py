"""Damages KV pages inside a worker of vLLM, and changes its weights, as `--worker-extension-cls`."""

from typing import Any

from loadtests.gameday.page_hand import KINDS, SECRET_FILE, PageHand

__all__ = ["KINDS", "SECRET_FILE", "Injector"]


class Injector(PageHand):
    """Mixed into vLLM's worker."""

    def holdfast_scale(self: Any, name: str, factor: float) -> None:
        """An operator's own method that changes a weight in place, as trainers add them."""
        from tests.vllm_plugin.real.weights import scale

        scale(self.get_model(), factor, name)
