"""`m2can data check`: every record and picture is read before training.

Imports records, manifest and stream.
"""
