"""Checkpoints: find, validate, read."""
