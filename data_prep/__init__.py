"""Stage 1: raw videos -> WebDataset shards with an index."""
