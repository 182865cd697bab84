"""Stage 1: raw videos -> WebDataset shards with an index."""

from typing import TYPE_CHECKING

from dynamonet.lazy import offer

if TYPE_CHECKING:
    from data_prep.settings import PrepSettings
    from data_prep.shard import shard

__all__ = ["PrepSettings", "shard"]

offer(__name__, PrepSettings="data_prep.settings", shard="data_prep.shard")
