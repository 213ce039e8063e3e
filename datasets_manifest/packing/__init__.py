"""`m2can data pack`: pictures in a few large files, read by offset.

Imports manifest and stream. Reading packed pictures is `manifest/packed_pictures`.
"""
