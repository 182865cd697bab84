"""Side by side with others, in one run: one file a table."""
