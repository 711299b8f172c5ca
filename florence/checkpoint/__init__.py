"""Finds a checkpoint by name, and reads its files, configuration, tokenizer and weights."""
