"""Manifests and records: schema, named data sets, readers, where files lie, the table of all domains.

Imports errors and files. Knows no view, no batch and no training.
"""
