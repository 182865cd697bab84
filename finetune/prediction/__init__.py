"""A finished model on video files."""
