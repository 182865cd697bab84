"""Frozen networks, read by ridge regression: what they know, and how sure that is."""
