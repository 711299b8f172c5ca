"""Beam search for all slots at once, sampling, and the reference search that defines the results."""
