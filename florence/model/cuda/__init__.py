"""The layers of steps and encodes by Triton kernels; all modules here import triton."""
