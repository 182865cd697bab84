"""What a set looks like: its page, and a gallery for each filter."""
