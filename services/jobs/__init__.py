"""Ray Jobs: the request of a job, checks before it starts, submission and logs."""
