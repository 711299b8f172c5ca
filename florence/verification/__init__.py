"""Verifies a checkpoint on the user's own weights: compares this package with transformers and timm.

Knows nothing about command lines; `florence.cli.verify` is its command.
"""
