"""Reads pictures, beside the engine: from files, bytes or PIL pictures to pixels at the model's input size.
Knows nothing about tasks and HTTP.
"""
