"""Runs pictures and prompts through the tower and the encoder, beside decode steps or between them."""
