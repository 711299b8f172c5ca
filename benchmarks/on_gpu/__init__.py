"""The parts of `gpu.py`: measurements on one GPU, and sections that fail independently."""
