"""The search: beams of all slots at once, sampling, and the plain search that defines the results."""
