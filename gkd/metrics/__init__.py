"""TODO gkd.metrics."""
