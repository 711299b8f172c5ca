"""Evaluation against the drawn world's ground truth."""
