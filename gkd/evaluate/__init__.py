"""TODO gkd.evaluate."""
