"""The KServe v2 protocol over HTTP and gRPC, as Triton answers it."""
