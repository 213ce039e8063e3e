"""Ray Jobs: what a job is asked to do, checks before it starts, submission and logs."""
