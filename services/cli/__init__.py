"""The command `m2can`: its options, output and ends. Heavy imports happen inside the commands."""
