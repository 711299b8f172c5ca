"""Triton kernels in the engine: the table of all, whether a device can use them, and the search by them."""
