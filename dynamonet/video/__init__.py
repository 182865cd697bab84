"""From encoded bytes to batches of clips."""
