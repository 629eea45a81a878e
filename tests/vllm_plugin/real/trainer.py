"""Entry point of a test's own plugin. It imports nothing: vLLM loads it before all else."""


def register() -> None:
    """Make a backend known that changes weights in place."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if "in-place" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("in-place", "tests.vllm_plugin.real.weights", "InPlace")
