"""Checking a finished set byte by byte, and repairing it."""
