"""Scenarios with real processes: the gateway as users start it, in front of stub upstreams."""
