"""Copies among segments, encoded or cut again: fingerprints, and how two are compared."""
