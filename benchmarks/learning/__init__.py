"""The learning benchmark: does pretraining pay, against what, and by how much?"""
