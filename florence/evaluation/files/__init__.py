"""Reads files with the ground truth: COCO annotations, questions with answers, JSON lines."""
