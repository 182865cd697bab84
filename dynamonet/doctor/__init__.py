"""`python -m dynamonet.doctor`: is everything there that a pretraining needs?"""
