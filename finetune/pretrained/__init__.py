"""Pretrained weights: ours, and those of other people's networks."""
