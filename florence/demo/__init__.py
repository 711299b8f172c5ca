"""The demo world: drawn scenes with ground truth for all fifteen tasks, and a small checkpoint trained on
them.

Nothing here is needed to serve a checkpoint. Training and evaluation are commands:
`python -m florence.demo.draw`, `.train`, `.evaluate`.
"""
