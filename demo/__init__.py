"""The whole pipeline on rendered videos, or on your own, in a few minutes."""
