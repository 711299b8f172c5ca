"""Florence-2 as a Python library."""
