"""`m2can data pack`: pictures in a few large files, read by offset.

Imports records, manifest and stream. Reading packed pictures is `records/packed_pictures`.
"""
