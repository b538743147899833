"""Decoder layers, norms, projections and attention as few kernels."""
