"""One client stream across upstream legs: events, ids, text, and the HTTP client to vLLM."""
