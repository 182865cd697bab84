"""Training a classifier: splits, augmentation, objective, runs and label curves."""
