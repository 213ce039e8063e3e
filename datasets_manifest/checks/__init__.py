"""`m2can data check`: every record and picture looked at before training.

Imports manifest and stream.
"""
