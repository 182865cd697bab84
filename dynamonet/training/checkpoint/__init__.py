"""What a checkpoint holds, and the checkpoints of a run on disk."""
