"""TODO gkd.sweep."""
