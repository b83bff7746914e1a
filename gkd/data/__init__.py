"""seqio tasks, prompts, vocabularies, metrics, synthetic tasks and the input pipeline."""
