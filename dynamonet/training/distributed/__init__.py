"""Ranks, the coordinator, resources on the cluster, and signals."""
