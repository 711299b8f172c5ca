"""A proof on the user's own weights: the same checkpoint in this package, in transformers and in timm.

Knows nothing about command lines; `florence.cli.verify` is its command.
"""
