"""The engine: requests of pixels and token ids in, futures of token ids and log-probabilities out.

One thread owns the device. Knows tensors, beams and queues; knows nothing about tasks, text, pictures'
formats or HTTP.
"""
