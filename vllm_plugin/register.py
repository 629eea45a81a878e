"""Entry point of `vllm.general_plugins`: makes the connector known by its name, in every process of vLLM.

It imports nothing: right after it, vLLM on the CPU looks into all modules that there are, and falls over numba's.
"""

NAME = "HoldfastConnector"


def register() -> None:
    """May be called any number of times: vLLM does, and refuses a second registration itself."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    try:
        KVConnectorFactory.get_connector_class_by_name(NAME)
    except ValueError:
        KVConnectorFactory.register_connector(NAME, "vllm_plugin.connector", NAME)
