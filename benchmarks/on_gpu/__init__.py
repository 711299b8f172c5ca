"""The parts of `gpu.py`: what is measured on one GPU, and how sections run so that each fails alone."""
