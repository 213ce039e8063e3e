"""The commands of `m2can`: one file a noun. Heavy imports happen inside the functions."""
