"""DynamoNet: self-supervised pretraining on unlabelled video with dynamic motion filters."""

import os
from typing import TYPE_CHECKING

from dynamonet.lazy import offer

if TYPE_CHECKING:
    from dynamonet.export import export
    from dynamonet.model.network import DynamoNet
    from dynamonet.shards.reader import ClipReader
    from dynamonet.shards.shard_set import ShardSet

# The usage reports of the libraries underneath are off unless the user turns them on.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__all__ = ["ClipReader", "DynamoNet", "ShardSet", "export"]
__version__ = "0.1.0"

offer(
    __name__,
    ClipReader="dynamonet.shards.reader",
    DynamoNet="dynamonet.model.network",
    ShardSet="dynamonet.shards.shard_set",
    export="dynamonet.export",
)
