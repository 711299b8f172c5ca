"""Linear layers and convolutions, and the kernels that compute them."""
