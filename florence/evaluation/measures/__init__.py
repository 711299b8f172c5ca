"""Metrics of answers against the ground truth."""
