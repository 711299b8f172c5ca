"""The engine: requests of pixels and token ids in, token ids and log-probabilities out.

One thread owns the device. The modules here are policy and bookkeeping in plain Python; tensors are in
`device`. Knows nothing about tasks, text, picture formats or HTTP.
"""
