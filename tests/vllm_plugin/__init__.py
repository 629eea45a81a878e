"""Tests of what lives inside vLLM."""

import os

# Before anything here brings torch, which looks at it once: answers are compared token by token, and several threads
# may add up the same sums in another order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
