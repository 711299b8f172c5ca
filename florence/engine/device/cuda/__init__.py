"""The engine's side of the Triton kernels: the table of all, whether a device can use them, and the
search."""
