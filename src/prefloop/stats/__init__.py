"""Intervals, rankings, agreement and corrections: statistics without a model, a file or a
network.
"""
