"""Votes: from people through Argilla or simulated, their aggregation, and the choice of pairs to
label next.
"""
