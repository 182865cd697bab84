"""MLflow runs, the store they go to, and the origin that travels with files."""
