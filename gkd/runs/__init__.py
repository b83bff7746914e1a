"""TODO gkd.runs."""
