"""Argilla: its datasets, forms and answers, and the conversion of prefloop's records to it and
back.
"""
