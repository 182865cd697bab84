"""Raw videos: what their headers say, and their labels."""
