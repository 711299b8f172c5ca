"""Attention and products for CPUs, compiled with numba."""
