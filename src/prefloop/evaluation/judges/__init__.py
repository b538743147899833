"""Judges and graders: language models, reward models, functions, and the cache around them."""
