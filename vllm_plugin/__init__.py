"""What of Holdfast lives inside vLLM. It knows nothing of the gateway: vLLM's environment does not hold that."""
