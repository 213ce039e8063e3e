"""What runs in a Ray Train worker's process: training, dry run, reports to the driver, log lines with run and rank.

Imports preflight's hints, loop and below. The driver's side is `cluster/`.
"""
