"""Features of a recipe's frozen encoders, computed once by Ray Data.

Imports preflight and below. Training on them: `encoders.features`.
"""
