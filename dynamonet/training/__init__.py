"""What pretraining and fine-tuning share: the loop, checkpoints, precision, schedules, meters."""
