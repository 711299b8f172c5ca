"""Files with the truth: COCO's annotations, questions with answers, JSON lines."""
