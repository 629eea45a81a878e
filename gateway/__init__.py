"""The Holdfast gateway: I/O and composition around the decisions of `guards`."""
