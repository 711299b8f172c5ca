"""Draws answers on their picture, and exports them as COCO, as supervision's detections, and as data sets.
Knows nothing about models.
"""
