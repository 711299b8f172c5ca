"""Tasks on many pictures: sources in, rows out, into files that a later run completes.

Knows no command line and no model: it is given what asks about one picture.
"""
