"""One file a term. Each function returns this worker's share of the term on the global batch (see trainers.m2can)."""
