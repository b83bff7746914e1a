"""Tasks, prompts and batches.

In: rows of data files, TFDS or seqio tasks. Out: a `TaskSpec` (texts, vocabulary, metrics), and
batches of token ids in an order that depends on the seed only and can be resumed at any position.
"""
