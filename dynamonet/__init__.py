"""DynamoNet: self-supervised pretraining on unlabelled video with dynamic motion filters."""

import os

# The usage reports of the libraries underneath are off unless the user turns them on.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__version__ = "0.1.0"
