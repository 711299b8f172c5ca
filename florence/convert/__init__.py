"""Makes a safetensors directory of checkpoints that the service refuses; the one room that opens pickle."""
