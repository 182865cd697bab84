"""Copies among segments, by fingerprints."""
