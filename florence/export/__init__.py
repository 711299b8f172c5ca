"""Answers drawn on their picture, as COCO, or as supervision's detections."""
