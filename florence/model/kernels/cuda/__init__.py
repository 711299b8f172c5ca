"""Triton kernels for decode steps and encodes on NVIDIA GPUs.

Imported only where a CUDA device computes: PyTorch's builds for CPUs have no triton. Each kernel is a PyTorch
custom operator, so that it runs in graphs and its cost can be counted on meta tensors, and has a twin in
`twins.py` or `tower_twins.py`, which defines what it computes. A step's kernels read lengths, positions and
options from device memory, so that a launch depends on the numbers of requests and beams only.

A step has `requests * beams` rows: request i has those from i * beams on, of which the first ones, as many as
it has beams, are in use. A request with no beams is padding.
"""
