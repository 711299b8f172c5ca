"""The drawn world: scenes, their pictures and their ground truth."""
