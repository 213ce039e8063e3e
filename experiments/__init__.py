"""Options that were tried and did not help, with their rows in README.md. Not in the wheel."""
