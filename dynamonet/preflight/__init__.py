"""The checks of `python -m dynamonet.doctor`: this machine, where things lie, Ray."""
