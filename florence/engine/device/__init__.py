"""The engine's work on a device: encodes, decode steps and beam search."""
