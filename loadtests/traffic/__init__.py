"""Traffic as people, agents and batches make it, on locust; what came of it, and what it says (docs/load.md)."""
