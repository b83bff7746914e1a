"""TODO gkd.files."""
