"""Everything that knows Ray Train: driver, workers, monitor, resources, the local cluster, dry run.

Imports tracking, loop and below.
"""
