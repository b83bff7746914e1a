"""TODO gkd.infer."""
