"""The service's interfaces: the v2 protocol over HTTP and gRPC, the typed endpoints, and what they share.

Knows HTTP bodies, gRPC messages, headers and statuses; knows nothing about devices, tensors of the model, or
how BentoML starts and stops a worker.
"""
