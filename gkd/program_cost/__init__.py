"""TODO gkd.program_cost."""
