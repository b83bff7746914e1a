"""TODO gkd.cli."""
