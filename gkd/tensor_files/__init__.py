"""TODO gkd.tensor_files."""
