"""Florence-2 as a network of tensors: sizes, tower, language model, and the loading of checkpoints.

Knows tensors, shapes and files of tensors. Knows nothing about tasks, pictures' formats, text, beams or
requests.
"""
