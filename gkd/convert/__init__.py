"""TODO gkd.convert."""
