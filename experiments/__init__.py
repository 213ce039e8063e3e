"""Options that were tried and did not help, as patches of the objective, the network or UACR. See README.md.

Not part of the wheel. One process without Ray; imports trainers and is imported by benchmarks alone.
"""
