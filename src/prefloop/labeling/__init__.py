"""Votes: from people through Argilla or simulated, aggregated, and which pairs to label next."""
