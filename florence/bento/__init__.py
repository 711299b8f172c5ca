"""What goes into a Bento beside the code: the container image's settings, and a checkpoint's weights.

Knows BentoML, the lock file and checkpoints' files; nothing about models, tasks or HTTP.
"""
