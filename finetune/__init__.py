"""Stage 3: a classifier on trunk features and dynamic motion representation."""
