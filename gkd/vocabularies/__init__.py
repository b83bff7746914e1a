"""TODO gkd.vocabularies."""
