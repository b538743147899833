"""Argilla: its datasets, pages and answers, and prefloop's records on the way there and back."""
