"""TODO gkd.configuration."""
