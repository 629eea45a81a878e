"""A fleet of real vLLM servers on this machine: for the demo, the tests and game days."""
