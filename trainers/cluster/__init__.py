"""The driver's side of Ray Train: starting and watching the workers, resources, the local cluster, dry run.

Imports worker, preflight, tracking, loop and below.
"""
