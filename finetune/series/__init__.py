"""Many fine-tunings side by side: label curves, networks to start from."""
