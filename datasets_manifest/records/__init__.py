"""Records files and what stands in them → the table of all domains: formats, values, labels, division, class folders.

Imports manifest, errors and files. Knows no view, no batch and no training.
"""
