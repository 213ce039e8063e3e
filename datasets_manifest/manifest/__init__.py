"""The manifest itself: its keys, named data sets, templates of picture paths, and where files lie.

Imports errors and files. Records are read in `records/`.
"""
