"""Features of frozen encoders in the place of pictures and tokens: their files, the views that they are of, their batches.

Imports stream and below. trainers.features computes them.
"""
