"""Figures on one's own data: truth files, measures of answers against them, comparisons, a page.

The measures are those of pycocotools, pycocoevalcap and torchmetrics, the packages of the extra "evaluate".
Knows nothing about models, services or command lines: it is given questions' answers.
"""
