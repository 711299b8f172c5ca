"""Runs tasks on many pictures: from sources to rows in files, which a later run can complete.

Knows nothing about command lines or models: it gets a function that asks about one picture.
"""
