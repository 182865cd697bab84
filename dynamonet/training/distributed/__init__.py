"""Ranks, the coordinator, resources on the cluster, failures, and signals."""
