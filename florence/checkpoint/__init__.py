"""From a checkpoint's name to its files, configuration, tokenizer and weights."""
