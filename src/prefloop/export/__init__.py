"""A result as a folder for others: adapter or merged weights, with a model card."""
