"""The engine's work on a device: encodes, decode steps, the beam search."""
