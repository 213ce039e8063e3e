"""What users meet: the command line, jobs, the control plane, serving, the registry. Imports everything below."""
