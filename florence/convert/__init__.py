"""Converts checkpoints that the service refuses to a safetensors directory; the only package that opens
pickles."""
