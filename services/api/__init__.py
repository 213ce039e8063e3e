"""The control plane over HTTP: jobs, models, sweeps."""
