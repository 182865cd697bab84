"""Measuring a classifier: predictions, metrics, plots, finished runs."""
