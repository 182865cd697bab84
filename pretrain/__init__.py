"""Stage 2: a 3D-CNN learns to predict frames of unlabelled video."""
