"""`python -m dynamonet.report`: one HTML file about a run."""
