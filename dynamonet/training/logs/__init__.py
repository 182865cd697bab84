"""The console, metrics of each step, and the tracking store."""
