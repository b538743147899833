"""Talking to one result or to two at once."""
