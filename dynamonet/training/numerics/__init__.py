"""Number formats, and steps whose loss is not finite."""
