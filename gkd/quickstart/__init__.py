"""TODO gkd.quickstart."""
