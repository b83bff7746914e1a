"""TODO gkd.plan."""
