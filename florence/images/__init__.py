"""Encoded pictures to the model's pixels. Knows nothing about tasks or models."""
