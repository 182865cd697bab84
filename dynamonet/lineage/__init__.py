"""`python -m dynamonet.lineage`: where something comes from."""
