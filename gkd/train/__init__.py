"""TODO gkd.train."""
