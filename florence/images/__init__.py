"""Decodes pictures into the model's input pixels. Knows nothing about tasks or models."""
