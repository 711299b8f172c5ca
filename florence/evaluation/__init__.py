"""Evaluates answers on the user's own data: ground truth files, metrics, comparisons, an HTML page.

The metrics are those of pycocotools, pycocoevalcap and torchmetrics, the packages of the extra "evaluate".
Knows nothing about models, services or command lines: it gets answers to questions.
"""
