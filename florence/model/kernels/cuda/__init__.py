"""Triton kernels for the decode step on NVIDIA's GPUs.

Imported where a CUDA device computes, and nowhere else: PyTorch's builds for CPUs have no triton. Each kernel
is a custom operation of PyTorch, so that it runs in graphs and is counted on tensors without memory, and has
a twin in `twins.py`, which defines what it computes. Kernels get tensors; lengths, places and options are
read from memory, so that the shapes of a launch depend on the number of requests and beams only.

The rows of a step lie in `requests * beams` places: request i has those from i * beams on, of which its own
number of beams is in use. A request with no beams is padding.
"""
