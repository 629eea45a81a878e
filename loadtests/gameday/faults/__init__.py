"""The faults, one scenario a file; `registry` lists them."""
