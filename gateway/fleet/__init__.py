"""The replicas: which there are, which live, which one is next."""
