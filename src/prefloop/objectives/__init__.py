"""Losses and estimators as pure functions of tensors, each with its paper and equation."""
