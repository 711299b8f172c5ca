"""How the service speaks: the v2 protocol, the typed endpoints, and what both share.

Knows HTTP bodies, gRPC messages, headers and statuses; knows nothing about devices, tensors of the model, or
how BentoML starts and stops a worker.
"""
