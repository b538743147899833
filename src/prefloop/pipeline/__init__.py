"""Stages, what wires them together, and a run of them."""
