"""HTTP in: the public edge and the admin port."""
