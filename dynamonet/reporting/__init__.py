"""What the report of a run is made of: what is known of it, its curves, its page."""
