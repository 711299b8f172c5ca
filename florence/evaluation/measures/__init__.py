"""Measures of answers against the truth, and figures made of them."""
