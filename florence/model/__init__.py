"""Florence-2 as a neural network: its sizes, vision tower and language model, adapters and kernels.

Knows tensors and shapes. Knows nothing about files, tasks, picture formats, text, beams or requests.
"""
